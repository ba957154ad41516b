//! LISP Map-Server.
