//! `#[derive(ShmSafe)]`, for the trait of `shm-core`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Field, Fields, GenericParam, Index, Path, Result, parse_quote,
};

/// Derives `shm_core::ShmSafe` for a struct whose form is fixed (`repr(C)` or `repr(transparent)`) and whose fields are
/// all `ShmSafe`.
///
/// The layout hash covers the names, places and layouts of the fields and the name, size and alignment of the struct:
/// programs that disagree in any of them get an error instead of each other's nonsense. Type parameters are bounded by
/// `ShmSafe`.
///
/// The code names the crate `::shm_core`. A crate that does not depend on it says where it is:
/// `#[shm_safe(crate = shm_array::shm_core)]`.
///
/// # Examples
///
/// ```
/// use shm_core::ShmSafe;
/// use std::sync::atomic::AtomicU64;
///
/// #[derive(ShmSafe)]
/// #[repr(C)]
/// struct Totals<T, const N: usize> {
///     jobs: AtomicU64,
///     by_kind: [T; N],
/// }
///
/// assert_ne!(Totals::<AtomicU64, 3>::LAYOUT, Totals::<AtomicU64, 4>::LAYOUT);
/// ```
///
/// Fields that mean nothing in another process are refused,
///
/// ```compile_fail,E0277
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C)]
/// struct Named { name: String }
/// ```
///
/// as are structs that the compiler may arrange as it likes,
///
/// ```compile_fail
/// #[derive(shm_core::ShmSafe)]
/// struct Unfixed { a: u8, b: u64 }
/// ```
///
/// or that have fields at odd addresses,
///
/// ```compile_fail
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C, packed)]
/// struct Packed { a: u8, b: u64 }
/// ```
///
/// enums and unions, because not every bit pattern is a value, or one of them is not the right one,
///
/// ```compile_fail
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C)]
/// enum State { Idle, Busy }
/// ```
///
/// ```compile_fail
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C)]
/// union Either { number: u64, real: f64 }
/// ```
///
/// what borrows,
///
/// ```compile_fail
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C)]
/// struct Borrows<'a> { flag: &'a u8 }
/// ```
///
/// and what has a destructor, which nobody would run.
///
/// ```compile_fail,E0080
/// #[derive(shm_core::ShmSafe)]
/// #[repr(C)]
/// struct Loud(u8);
/// impl Drop for Loud {
///     fn drop(&mut self) { println!("gone") }
/// }
/// ```
#[proc_macro_derive(ShmSafe, attributes(shm_safe))]
pub fn shm_safe(input: TokenStream) -> TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(input).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(mut input: DeriveInput) -> Result<Tokens> {
    let fields = fields_of(&input)?;
    check_form(&input)?;
    let shm_core = crate_path(&input.attrs)?;
    let steps: Vec<Tokens> = fields.iter().enumerate().map(|(i, field)| step(i, field, &shm_core)).collect();

    let mut parameters = Vec::new();
    for parameter in &mut input.generics.params {
        match parameter {
            GenericParam::Lifetime(lifetime) => {
                return Err(Error::new(lifetime.span(), "what borrows cannot be shared between processes"));
            }
            GenericParam::Type(parameter) => {
                parameter.bounds.push(parse_quote!(#shm_core::ShmSafe));
                let name = &parameter.ident;
                parameters.push(quote!(<#name as #shm_core::ShmSafe>::LAYOUT));
            }
            GenericParam::Const(parameter) => {
                let name = &parameter.ident;
                parameters.push(quote!(#name as u64));
            }
        }
    }

    let name = &input.ident;
    let text = name.to_string();
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    // Without parameters the checks are made here and now, and not where the type is first shared.
    let now = parameters.is_empty().then(|| quote!(const _: u64 = <#name as #shm_core::ShmSafe>::LAYOUT;));
    Ok(quote! {
        // SAFETY: `repr(C)` or `repr(transparent)`; every field is `ShmSafe`; no destructor, as is asserted.
        #[automatically_derived]
        #[allow(unsafe_code)]
        unsafe impl #impl_generics #shm_core::ShmSafe for #name #type_generics #where_clause {
            const LAYOUT: u64 = {
                ::core::assert!(
                    !::core::mem::needs_drop::<Self>(),
                    ::core::concat!("`", #text, "` has a destructor, which nobody runs in memory that processes share"),
                );
                let __hash = #shm_core::portable::layout_of::<Self>(#text);
                #( let __hash = #shm_core::portable::mix(__hash, #parameters); )*
                #( #steps )*
                __hash
            };
        }
        #now
    })
}

/// Mixes one field into `__hash`: a name that no parameter of the struct has.
fn step(index: usize, field: &Field, shm_core: &Path) -> Tokens {
    let member = match &field.ident {
        Some(name) => name.to_token_stream(),
        None => Index::from(index).to_token_stream(),
    };
    let (text, ty) = (member.to_string(), &field.ty);
    // The span is the field's, so that an error about the bound points there.
    let layout = quote_spanned!(ty.span()=> <#ty as #shm_core::ShmSafe>::LAYOUT);
    quote! {
        let __hash = #shm_core::portable::mix(__hash, #shm_core::portable::layout_of::<#ty>(#text));
        let __hash = #shm_core::portable::mix(__hash, ::core::mem::offset_of!(Self, #member) as u64);
        let __hash = #shm_core::portable::mix(__hash, #layout);
    }
}

fn fields_of(input: &DeriveInput) -> Result<Fields> {
    match &input.data {
        Data::Struct(data) => Ok(data.fields.clone()),
        Data::Enum(data) => Err(Error::new(
            data.enum_token.span,
            "not every bit pattern is a value of an enum: keep its number and convert",
        )),
        Data::Union(data) => {
            Err(Error::new(data.union_token.span, "nobody can tell which field of a union is the right one"))
        }
    }
}

/// Whether the form is fixed, and fields lie where they should.
fn check_form(input: &DeriveInput) -> Result<()> {
    let mut is_fixed = false;
    for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("repr")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("packed") {
                return Err(meta.error("atomics and locks in a packed struct would lie at odd addresses"));
            }
            is_fixed |= meta.path.is_ident("C") || meta.path.is_ident("transparent");
            if meta.input.peek(syn::token::Paren) {
                let size;
                syn::parenthesized!(size in meta.input);
                size.parse::<Tokens>()?;
            }
            Ok(())
        })?;
    }
    if is_fixed {
        return Ok(());
    }
    let problem = "the compiler may arrange it differently in every program: add `#[repr(C)]`";
    Err(Error::new(input.ident.span(), problem))
}

/// Where `shm_core` is.
fn crate_path(attributes: &[Attribute]) -> Result<Path> {
    let mut path = parse_quote!(::shm_core);
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("shm_safe")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("crate") {
                return Err(meta.error("the one option is `crate = path::to::shm_core`"));
            }
            path = meta.value()?.call(Path::parse_mod_style)?;
            Ok(())
        })?;
    }
    Ok(path)
}
