//! A process dies after each single instruction of an operation, and the survivors go on.
//!
//! The victim is a forked child that is executed instruction by instruction (`tracer`). Each death is a run of its own: a
//! new queue, a new victim, so many instructions, SIGKILL. Then the survivors find one of the outcomes that are listed for
//! the operation (a send: the message arrives whole or not at all), and nothing else: what was queued before is there, in
//! order; messages pass; every slot is usable; the dead one is swept, and holds no side of the queue open. Before the first
//! instruction only the first of the outcomes will do, after the last only the last, and each must occur.
//! `operations` has them all; a new one takes a queue, a line that uses it, and the outcomes.
//!
//! `stopped` has the same victims stopped instead, for seconds: they are alive, and what they have claimed is theirs.
//!
//! # Why not all instructions are tried each time
//!
//! Survivors know of a dead process what lies in the queue's memory, and what the kernel keeps (locks, descriptors,
//! mappings, who sleeps). The first changes only with instructions that change its bytes, the second only with system
//! calls. Between two of those nothing that anybody can see differs, so all deaths there are one and the same. So a first
//! victim does the whole operation, while after each instruction the memory is compared with what it was; the others die
//! after each instruction that has changed it, after each system call, before the first instruction and behind the last.
//!
//! With `EVERY_INSTRUCTION` set (to anything), victims die after *each* instruction, the argument left aside: some 300,000
//! deaths, which take minutes.
//!
//! A moment is named by the number of system calls before it, and by which visit of which address it is behind the last of
//! them: forks have the same addresses, so that a breakpoint leads there at once, and only the first victim is stepped.
//! Where time or chance have a say (in hash tables, in the allocator, in when to look at the peers) a victim may take
//! another way than the first did, and go astray: it is killed where it is then, what is found must be legal there too, and
//! the number of those is printed.
//!
//! # What this cannot show
//!
//! * A stopped victim has no stores under way. On x86-64 stores become visible in program order, so every death leaves what
//!   some instruction left; elsewhere it need not. That is `loom.rs`'s part.
//! * System calls are one step: that the kernel does them whole or not at all is believed.
//! * What a process does once in its life (register with the kernel, allocate its tables) the victim's parent has done.
//! * Only x86-64 is stepped. On AArch64 a debugger's step between a load-exclusive and its store-exclusive makes the store
//!   fail, so a loop around them would never end.
#![cfg(not(loom))]

mod common;

#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/harness.rs"]
mod harness;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/large.rs"]
mod large;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/leases.rs"]
mod leases;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/line.rs"]
mod line;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/memory.rs"]
mod memory;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/operations.rs"]
mod operations;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/single.rs"]
mod single;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/stopped.rs"]
mod stopped;
#[cfg(target_arch = "x86_64")]
#[path = "every_instruction/tracer.rs"]
mod tracer;

#[cfg(not(target_arch = "x86_64"))]
#[test]
fn instructions_of_other_processors_are_not_stepped() {
    println!("skipped: only x86-64 can be executed instruction by instruction here");
}
