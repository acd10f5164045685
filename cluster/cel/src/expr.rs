//! An expression as a tree, macros included: they are walked over as they are written, and not expanded into loops.

use regex::Regex;

use crate::library::Function;

#[derive(Debug)]
pub(crate) struct Expr {
    /// Byte of the source.
    pub at: usize,
    /// Of the tree below it: whoever walks it needs that much stack.
    pub height: u16,
    pub kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Ident(Box<str>),
    /// `a.b`, `a.?b`.
    Select {
        of: Box<Expr>,
        field: Box<str>,
        optional: bool,
    },
    /// `has(a.b)`.
    Has {
        of: Box<Expr>,
        field: Box<str>,
    },
    /// `a[b]`, `a[?b]`.
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    /// All of a chain of `&&`: a hundred of them are no deeper than two.
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Binary {
        operator: Operator,
        sides: Box<[Expr; 2]>,
    },
    Conditional(Box<[Expr; 3]>),
    Call {
        function: &'static Function,
        /// The receiver is the first.
        arguments: Vec<Expr>,
        /// Where it is a literal.
        pattern: Option<Regex>,
    },
    Comprehension(Box<Comprehension>),
    /// `optMap`, `optFlatMap`.
    OfOptional {
        of: Box<Expr>,
        variable: Box<str>,
        body: Box<Expr>,
        flat: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Comprehension {
    pub what: What,
    pub over: Expr,
    pub variable: Box<str>,
    /// Of two: the index or key is the first, the value the second.
    pub second: Option<Box<str>>,
    pub filter: Option<Expr>,
    pub body: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
    TransformList,
    TransformMap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
}

impl Operator {
    /// As cel-go's messages have it.
    pub(crate) fn function(self) -> &'static str {
        match self {
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Modulo => "_%_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterEqual => "_>=_",
            Self::In => "@in",
        }
    }
}
