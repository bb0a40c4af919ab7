//! What both typed ends have.

/// Lengths, `Debug`, and the way to other processes.
macro_rules! both_ends {
    ($name:ident) => {
        impl<T, C> $name<T, C> {
            /// How many messages are in the queue. May be stale at once. 0 in a forked child that cannot attach.
            pub fn len(&self) -> usize {
                self.end.len()
            }

            /// Whether no message is in the queue. May be stale at once.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Whether there is no room. May be stale at once.
            pub fn is_full(&self) -> bool {
                self.len() >= self.capacity()
            }

            /// How many messages the queue holds at most.
            pub fn capacity(&self) -> usize {
                self.end.capacity()
            }

            /// The longest message in bytes.
            pub fn max_message_len(&self) -> usize {
                self.end.limit()
            }
        }

        impl<T, C> fmt::Debug for $name<T, C> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.end.fmt_as(stringify!($name), f)
            }
        }

        impl<T, C: Format<T>> Serialize for $name<T, C> {
            /// Gives the end up: see [`spsc`](mod@crate::spsc).
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.end.serialize::<T, C, S>(serializer)
            }
        }

        impl<'de, T, C: Format<T>> Deserialize<'de> for $name<T, C> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                End::deserialize::<T, C, D>(deserializer).map(Self::new)
            }
        }
    };
}

pub(super) use both_ends;
