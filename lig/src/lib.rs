//! Asks a LISP mapping system.
