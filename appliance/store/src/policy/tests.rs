//! Each policy against a plain model.
