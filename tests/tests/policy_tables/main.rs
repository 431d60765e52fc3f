//! What becomes of manifests in the end, held against what the specification says of them: the classic cases, and random
//! clusters with random policies.
//!
//! ```text
//! manifests ─┬─► oracle ───────────────────────────────────────────────► verdict ─┐
//!            └─► control plane ─► model ─► each node's tables ─► decision ────────┴─ the same, for everybody and every port
//! ```

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod classic;
mod generate;
mod nodes;
mod random;
