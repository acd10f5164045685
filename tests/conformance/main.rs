//! The CRI as a stock client sees it.

mod asked;
mod crictl;
mod every_rpc;
mod of_berth;
mod of_stock_shims;
