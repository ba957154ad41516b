//! WireGuard data planes.
