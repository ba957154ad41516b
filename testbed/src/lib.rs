//! Whole networks in namespaces, with real daemons in them.
