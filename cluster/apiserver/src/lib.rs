//! The API server that kubectl uses: one way for every kind, led by data.
