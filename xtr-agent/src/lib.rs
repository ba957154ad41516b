//! LISP xTR agent.
