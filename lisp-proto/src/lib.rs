//! LISP wire format.
