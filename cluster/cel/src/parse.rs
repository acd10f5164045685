//! From words to a tree, by the precedence of operators. Functions are looked up at once: what isn't there is refused here.

use regex::Regex;

use crate::{
    Error,
    expr::{Comprehension, Expr, Kind, Operator, What},
    library::{self, Function},
    token::{self, Token, tokens},
};

/// In bytes; cel-go takes 100,000 characters.
const LONGEST: usize = 100_000;
/// Of parentheses, lists, calls within each other. Each costs some stack here and when it is run.
const DEEPEST: usize = 64;
/// Of the tree: chains such as `a.b.c` and `a + b + c` grow it, too.
const TALLEST: u16 = 160;

pub(crate) fn parse(source: &str) -> Result<Expr, Error> {
    if source.len() > LONGEST {
        return Err(Error::Compile(format!(
            "expression size exceeds limit: size: {}, limit {LONGEST}",
            source.len()
        )));
    }
    let mut parser = Parser {
        source,
        tokens: tokens(source)?,
        next: 0,
        depth: 0,
    };
    let expr = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(expr),
        other => {
            let why = format!(
                "Syntax error: mismatched input {} expecting <EOF>",
                shown(other)
            );
            parser.wrong(&why)
        }
    }
}

struct Parser<'s> {
    source: &'s str,
    tokens: Vec<(Token, usize)>,
    next: usize,
    depth: usize,
}

/// The operators of each level, the loosest first.
const LEVELS: [&[(&str, Operator)]; 3] = [
    &[
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessEqual),
        (">=", Operator::GreaterEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
        ("in", Operator::In),
    ],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[
        ("*", Operator::Multiply),
        ("/", Operator::Divide),
        ("%", Operator::Modulo),
    ],
];

impl Parser<'_> {
    fn peek(&self) -> &Token {
        // the last is the end, which is never gone past
        &self.tokens[self.next].0
    }

    fn at(&self) -> usize {
        self.tokens[self.next].1
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.next].0.clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(here) if *here == sign)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        if is {
            self.advance();
        }
        is
    }

    fn expect(&mut self, sign: &str) -> Result<(), Error> {
        if self.eat(sign) {
            return Ok(());
        }
        let why = format!(
            "Syntax error: mismatched input {} expecting '{sign}'",
            shown(self.peek())
        );
        self.wrong(&why)
    }

    fn wrong<T>(&self, why: &str) -> Result<T, Error> {
        self.wrong_at(self.at(), why)
    }

    fn wrong_at<T>(&self, at: usize, why: &str) -> Result<T, Error> {
        Err(Error::compile(self.source, at, why))
    }

    fn node(&self, at: usize, kind: Kind) -> Result<Expr, Error> {
        let height = kind.height().saturating_add(1);
        if height > TALLEST {
            return self.wrong_at(
                at,
                &format!("expression recursion limit exceeded: {TALLEST}"),
            );
        }
        Ok(Expr { at, height, kind })
    }

    fn expression(&mut self) -> Result<Expr, Error> {
        if self.depth >= DEEPEST {
            return self.wrong(&format!("expression recursion limit exceeded: {DEEPEST}"));
        }
        self.depth += 1;
        let expr = self.conditional();
        self.depth -= 1;
        expr
    }

    fn conditional(&mut self) -> Result<Expr, Error> {
        let condition = self.chain("||", Kind::Or)?;
        let at = self.at();
        if !self.eat("?") {
            return Ok(condition);
        }
        let then = self.chain("||", Kind::Or)?;
        self.expect(":")?;
        let otherwise = self.expression()?;
        self.node(
            at,
            Kind::Conditional(Box::new([condition, then, otherwise])),
        )
    }

    fn chain(&mut self, sign: &'static str, kind: fn(Vec<Expr>) -> Kind) -> Result<Expr, Error> {
        let link = |parser: &mut Self| match sign {
            "||" => parser.chain("&&", Kind::And),
            _ => parser.level(0),
        };
        let first = link(self)?;
        let at = self.at();
        if !self.is(sign) {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.eat(sign) {
            all.push(link(self)?);
        }
        self.node(at, kind(all))
    }

    fn level(&mut self, level: usize) -> Result<Expr, Error> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut left = self.level(level + 1)?;
        loop {
            let operator = match self.peek() {
                Token::Sign(sign) => operators.iter().find(|(known, _)| known == sign),
                _ => None,
            };
            let Some((_, operator)) = operator else {
                return Ok(left);
            };
            let at = self.at();
            self.advance();
            let right = self.level(level + 1)?;
            let kind = Kind::Binary {
                operator: *operator,
                sides: Box::new([left, right]),
            };
            left = self.node(at, kind)?;
        }
    }

    fn unary(&mut self) -> Result<Expr, Error> {
        let at = self.at();
        let sign = match self.peek() {
            Token::Sign(sign @ ("!" | "-")) => *sign,
            _ => return self.member(),
        };
        let mut count = 0_usize;
        while self.eat(sign) {
            count += 1;
        }
        // a negative number is one: the least int is no positive one's opposite
        if sign == "-"
            && let Token::Int(digits) = self.peek()
        {
            let text = format!("-{digits}");
            self.tokens[self.next].0 = Token::Int(text.into());
            count -= 1;
        } else if sign == "-"
            && let Token::Double(number) = self.peek()
        {
            let number = -number;
            self.tokens[self.next].0 = Token::Double(number);
            count -= 1;
        }
        let of = self.member()?;
        // of an even number of them the type is all that is left
        match (sign, count) {
            (_, 0) => Ok(of),
            ("!", count) => {
                let once = self.node(at, Kind::Not(Box::new(of)))?;
                match count % 2 {
                    1 => Ok(once),
                    _ => self.node(at, Kind::Not(Box::new(once))),
                }
            }
            (_, count) => {
                let once = self.node(at, Kind::Negate(Box::new(of)))?;
                match count % 2 {
                    1 => Ok(once),
                    _ => self.node(at, Kind::Negate(Box::new(once))),
                }
            }
        }
    }

    fn member(&mut self) -> Result<Expr, Error> {
        let mut expr = self.primary()?;
        loop {
            let at = self.at();
            if self.eat(".") {
                let optional = self.eat("?");
                let name_at = self.at();
                let (name, quoted) = match self.advance() {
                    Token::Ident(name) => (name, false),
                    Token::Quoted(name) => (name, true),
                    other => {
                        let why = format!(
                            "Syntax error: mismatched input {} expecting IDENTIFIER",
                            shown(&other)
                        );
                        return self.wrong_at(name_at, &why);
                    }
                };
                if !optional && !quoted && self.eat("(") {
                    let arguments = self.arguments(")")?;
                    expr = self.method(at, expr, &name, arguments)?;
                } else {
                    let kind = Kind::Select {
                        of: Box::new(expr),
                        field: name,
                        optional,
                    };
                    expr = self.node(at, kind)?;
                }
            } else if self.eat("[") {
                let optional = self.eat("?");
                let index = self.expression()?;
                self.expect("]")?;
                let kind = Kind::Index {
                    of: Box::new(expr),
                    index: Box::new(index),
                    optional,
                };
                expr = self.node(at, kind)?;
            } else {
                return Ok(expr);
            }
        }
    }

    /// Up to `close`, which is taken, too; a comma may stand before it where it closes no call.
    fn arguments(&mut self, close: &str) -> Result<Vec<Expr>, Error> {
        let mut all = Vec::new();
        while !self.eat(close) {
            all.push(self.expression()?);
            if !self.eat(",") {
                self.expect(close)?;
                break;
            }
            if close == ")" && self.is(")") {
                return self.wrong("Syntax error: mismatched input ')'");
            }
        }
        Ok(all)
    }

    fn primary(&mut self) -> Result<Expr, Error> {
        let at = self.at();
        // a leading dot means the outermost name, and there is no other
        self.eat(".");
        let kind = match self.advance() {
            Token::Int(text) => Kind::Int(self.integer(at, &text)?),
            Token::Uint(number) => Kind::Uint(number),
            Token::Double(number) => Kind::Double(number),
            Token::Text(text) => Kind::Text(text),
            Token::Bytes(bytes) => Kind::Bytes(bytes),
            Token::Sign("(") => {
                let within = self.expression()?;
                self.expect(")")?;
                return Ok(within);
            }
            Token::Sign("[") => Kind::List(self.arguments("]")?),
            Token::Sign("{") => Kind::Map(self.entries()?),
            Token::Ident(name) => {
                if self.eat("(") {
                    let arguments = self.arguments(")")?;
                    return self.call(at, &name, arguments);
                }
                match name.as_ref() {
                    "true" => Kind::Bool(true),
                    "false" => Kind::Bool(false),
                    "null" => Kind::Null,
                    word if token::is_reserved(word) => {
                        return self
                            .wrong_at(at, &format!("Syntax error: reserved identifier: {word}"));
                    }
                    _ => Kind::Ident(name),
                }
            }
            other => {
                let why = format!("Syntax error: mismatched input {}", shown(&other));
                return self.wrong_at(at, &why);
            }
        };
        self.node(at, kind)
    }

    fn integer(&self, at: usize, text: &str) -> Result<i64, Error> {
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => ("-", digits),
            None => ("", text),
        };
        let number = match digits.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
            None => text.parse(),
        };
        match number {
            Ok(number) => Ok(number),
            Err(_) => self.wrong_at(at, "Syntax error: invalid int literal"),
        }
    }

    fn entries(&mut self) -> Result<Vec<(Expr, Expr)>, Error> {
        let mut all = Vec::new();
        while !self.eat("}") {
            let key = self.expression()?;
            self.expect(":")?;
            all.push((key, self.expression()?));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(all)
    }

    fn call(&self, at: usize, name: &str, mut arguments: Vec<Expr>) -> Result<Expr, Error> {
        if name == "has" && arguments.len() == 1 {
            let kind = match arguments.pop().map(|argument| argument.kind) {
                Some(Kind::Select {
                    of,
                    field,
                    optional: false,
                }) => Kind::Has { of, field },
                _ => return self.wrong_at(at, "invalid argument to has() macro"),
            };
            return self.node(at, kind);
        }
        self.function(at, library::find(name, false), name, arguments)
    }

    fn method(
        &self,
        at: usize,
        target: Expr,
        name: &str,
        mut arguments: Vec<Expr>,
    ) -> Result<Expr, Error> {
        if let Kind::Ident(space) = &target.kind
            && let Some(function) = library::find(&format!("{space}.{name}"), false)
        {
            return self.function(at, Some(function), name, arguments);
        }
        let what = match name {
            "all" => Some(What::All),
            "exists" => Some(What::Exists),
            "exists_one" | "existsOne" => Some(What::ExistsOne),
            "filter" => Some(What::Filter),
            "map" => Some(What::Map),
            "transformList" => Some(What::TransformList),
            "transformMap" => Some(What::TransformMap),
            _ => None,
        };
        if let Some(what) = what {
            return self.comprehension(at, what, name, target, arguments);
        }
        if matches!(name, "optMap" | "optFlatMap") && arguments.len() == 2 {
            let [variable, body] = [arguments.remove(0), arguments.remove(0)];
            let variable = self.variable(&variable, name)?;
            let kind = Kind::OfOptional {
                of: Box::new(target),
                variable,
                body: Box::new(body),
                flat: name == "optFlatMap",
            };
            return self.node(at, kind);
        }
        arguments.insert(0, target);
        self.function(at, library::find(name, true), name, arguments)
    }

    fn comprehension(
        &self,
        at: usize,
        what: What,
        name: &str,
        over: Expr,
        arguments: Vec<Expr>,
    ) -> Result<Expr, Error> {
        let count = arguments.len();
        let mut arguments = arguments.into_iter();
        let mut one = || arguments.next();
        // variables, and whether a filter stands before the body
        let (two, filtered) = match (what, count) {
            (What::All | What::Exists | What::ExistsOne, 3) => (true, false),
            (What::All | What::Exists | What::ExistsOne | What::Filter, 2) => (false, false),
            (What::Map, 2) => (false, false),
            (What::Map, 3) => (false, true),
            (What::TransformList | What::TransformMap, 3) => (true, false),
            (What::TransformList | What::TransformMap, 4) => (true, true),
            _ => {
                let why = format!("found no matching overload for '{name}' with {count} arguments");
                return self.wrong_at(at, &why);
            }
        };
        let (Some(variable), second) = (one(), two.then(&mut one).flatten()) else {
            return self.wrong_at(at, "a macro without its variable");
        };
        let filter = filtered.then(&mut one).flatten();
        let Some(body) = one() else {
            return self.wrong_at(at, "a macro without its body");
        };
        let comprehension = Comprehension {
            what,
            over,
            variable: self.variable(&variable, name)?,
            second: second
                .map(|second| self.variable(&second, name))
                .transpose()?,
            filter,
            body,
        };
        self.node(at, Kind::Comprehension(Box::new(comprehension)))
    }

    fn variable(&self, expr: &Expr, macro_name: &str) -> Result<Box<str>, Error> {
        match &expr.kind {
            Kind::Ident(name) => Ok(name.clone()),
            _ => self.wrong_at(
                expr.at,
                &format!("argument must be a simple name in the macro {macro_name}()"),
            ),
        }
    }

    fn function(
        &self,
        at: usize,
        function: Option<&'static Function>,
        name: &str,
        arguments: Vec<Expr>,
    ) -> Result<Expr, Error> {
        let Some(function) = function else {
            let why = format!("undeclared reference to '{name}' (in container '')");
            return self.wrong_at(at, &why);
        };
        let (least, most) = function.arguments;
        if !(least..=most).contains(&arguments.len()) {
            let why = format!(
                "found no matching overload for '{name}' with {} arguments",
                arguments.len()
            );
            return self.wrong_at(at, &why);
        }
        let mut pattern = None;
        if matches!(name, "matches" | "find" | "findAll")
            && let Some(Kind::Text(text)) = arguments.get(1).map(|argument| &argument.kind)
        {
            match library::pattern(text) {
                Ok(regex) => pattern = Some::<Regex>(regex),
                Err(why) => return self.wrong_at(arguments[1].at, &why),
            }
        }
        let kind = Kind::Call {
            function,
            arguments,
            pattern,
        };
        self.node(at, kind)
    }
}

impl Kind {
    fn height(&self) -> u16 {
        let most = |all: &[Expr]| all.iter().map(|expr| expr.height).max().unwrap_or(0);
        match self {
            Self::Select { of, .. } | Self::Has { of, .. } | Self::Not(of) | Self::Negate(of) => {
                of.height
            }
            Self::Index { of, index, .. } => of.height.max(index.height),
            Self::List(all) | Self::And(all) | Self::Or(all) => most(all),
            Self::Call { arguments, .. } => most(arguments),
            Self::Binary { sides, .. } => most(sides.as_slice()),
            Self::Conditional(parts) => most(parts.as_slice()),
            Self::Map(entries) => entries
                .iter()
                .map(|(key, value)| key.height.max(value.height))
                .max()
                .unwrap_or(0),
            Self::OfOptional { of, body, .. } => of.height.max(body.height),
            Self::Comprehension(all) => all
                .over
                .height
                .max(all.body.height)
                .max(all.filter.as_ref().map_or(0, |filter| filter.height)),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Uint(_)
            | Self::Double(_)
            | Self::Text(_)
            | Self::Bytes(_)
            | Self::Ident(_) => 0,
        }
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::End => "'<EOF>'".into(),
        Token::Sign(sign) => format!("'{sign}'"),
        Token::Ident(name) | Token::Quoted(name) => format!("'{name}'"),
        Token::Int(text) => format!("'{text}'"),
        Token::Uint(number) => format!("'{number}u'"),
        Token::Double(number) => format!("'{number}'"),
        Token::Text(_) => "a string".into(),
        Token::Bytes(_) => "bytes".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_expression_is_told_with_its_place() {
        for (source, why) in [
            ("", "mismatched input '<EOF>'"),
            ("1 +", "1:4: Syntax error"),
            (
                "a b",
                "1:3: Syntax error: mismatched input 'b' expecting <EOF>",
            ),
            ("nope(1)", "undeclared reference to 'nope'"),
            ("a.nope()", "undeclared reference to 'nope'"),
            (
                "size()",
                "found no matching overload for 'size' with 0 arguments",
            ),
            ("[1].all(x)", "found no matching overload for 'all'"),
            ("[1].all(x.y, true)", "must be a simple name"),
            ("has(a)", "invalid argument to has()"),
            ("'a'.matches('(')", "regex"),
            ("for", "reserved identifier"),
            ("99999999999999999999", "invalid int literal"),
            ("f(1,)", "mismatched input ')'"),
        ] {
            let error = parse(source).map(drop).expect_err(source).to_string();
            assert!(error.contains(why), "{source}: {error}");
        }
        assert!(parse("-9223372036854775808").is_ok());
        assert!(parse("[1, 2,]").is_ok());
    }

    #[test]
    fn depth_and_length_have_an_end() {
        let deep = |open: &str, close: &str, count: usize| {
            format!("{}1{}", open.repeat(count), close.repeat(count))
        };
        for source in [
            deep("(", ")", 100_000 / 2 - 1),
            deep("[", "]", 1000),
            deep("size(", ")", 1000),
            deep("1 + ", "", 1000),
            deep("true ? 1 : ", "", 1000),
            deep("", ".a", 1000),
            deep("[1].map(x, ", ")", 1000),
            "1".repeat(200_000),
        ] {
            let error = parse(&source).map(drop).expect_err(&source[..20]);
            assert!(error.to_string().contains("limit"), "{error}");
        }
        for source in [
            deep("(", ")", 50),
            deep("1 + ", "", 100),
            deep("!", "", 20_000),
            deep("true && ", "", 5000),
        ] {
            assert!(parse(&source).is_ok(), "{}", &source[..20]);
        }
    }
}
