//! How a patch changes an object: strategic merge, and server-side apply with its managed fields.
//!
//! JSON patch (RFC 6902) and merge patch (RFC 7386) are the crate `json-patch`'s.
