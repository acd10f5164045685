use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Fields;

fn object() -> Value {
    json!({
        "name": "web", "replicas": 3, "big": 18_446_744_073_709_551_615_u64, "ratio": 0.5, "on": true, "none": null,
        "list": [1, 2, 3], "words": ["a", "b"], "labels": {"app": "web", "x.y/z": "1"},
        "namespace": "n", "a-b": 7,
        "containers": [{"name": "c", "image": "r/a:1"}, {"name": "d", "image": "q/b:2", "ports": [{"p": 80}]}],
    })
}

fn run(source: &str) -> Result<String, Error> {
    let program = Program::compile(
        source,
        &[("self", Shape::Any), ("gone", Shape::Any)],
        Wants::Anything,
    )?;
    let object = object();
    let variables = [("self", Val::json(&object)), ("gone", Val::none())];
    let value = program.run(&variables, &mut Budget::of_object())?;
    Ok(match value {
        Val::Bool(bool) => bool.to_string(),
        Val::Text(text) => text.to_string(),
        value => format!("{value:?}"),
    })
}

#[test]
fn these_hold() {
    for source in [
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9 && 7 / 2 == 3 && -7 % 3 == -1 && 7.0 / 2.0 == 3.5",
        "-9223372036854775808 < 0 && 5u - 3u == 2u && 1 < 1.5 && 2 > 1.5 && 1u < 2",
        "dyn(1) == dyn(1.0) && dyn(1) == dyn(1u) && dyn(1) != dyn('1')",
        "'a' + 'b' == 'ab' && [1] + [2] == [1, 2] && b'a' + b'b' == b'ab'",
        "!false && !!true && (false || true) && (true ? 1 : 2) == 1",
        // what decides, decides
        "true || 1 / 0 == 0",
        "1 / 0 == 0 || true",
        "!(1 / 0 == 0 && false)",
        "[1, 2].exists(x, x / (x - 1) == 2)",
        "!([0, 1].all(x, 1 / x == 5))",
        "1 in [1, 2] && !(3 in [1, 2]) && 'a' in {'a': 1} && 'app' in self.labels",
        "self.name == 'web' && self.replicas == 3 && self.ratio == 0.5 && self.on && self.none == null",
        "self.big > 9223372036854775807u && type(self.big) == uint && type(self.list) == list",
        "has(self.name) && !has(self.nope) && has(self.labels.app) && self['name'] == 'web'",
        "self.labels['x.y/z'] == '1' && self.list[2] == 3 && self.`a-b` == 7",
        "self.__namespace__ == 'n' && self.a__dash__b == 7 && self.namespace == 'n'",
        "self.containers.all(c, c.image.contains('/')) && self.containers.exists_one(c, has(c.ports))",
        "self.containers.map(c, c.name) == ['c', 'd'] && self.list.filter(x, x > 1) == [2, 3]",
        "self.list.map(x, x > 1, x * 2) == [4, 6] && self.labels.all(k, k != '')",
        "[5, 6].transformList(i, v, i + v) == [5, 7] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "[5, 6].all(i, v, v - i == 5) && self.labels.exists(k, v, v == 'web')",
        "self.?nope.orValue('x') == 'x' && self.?name.orValue('x') == 'web' && !self.?a.?b.c.hasValue()",
        "self.list[?5].orValue(9) == 9 && optional.of(1).optMap(x, x + 1).value() == 2 && gone.optMap(x, x).orValue(3) == 3",
        "!gone.hasValue() && optional.ofNonZeroValue('') == optional.none() && gone.or(optional.of(1)).value() == 1",
        "size('aä') == 2 && 'aä'.size() == 2 && size([1]) == 1 && size({}) == 0 && size(b'ab') == 2",
        "int('5') == 5 && int(5.9) == 5 && string(5) == '5' && double('1.5') == 1.5 && uint(3) == 3u && bool('true')",
        "'Abc'.lowerAscii() == 'abc' && 'abc'.upperAscii() == 'ABC' && ' a '.trim() == 'a' && 'abc'.charAt(1) == 'b'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && ['a', 'b'].join('-') == 'a-b'",
        "'abcabc'.replace('b', 'X') == 'aXcaXc' && 'abcabc'.replace('b', 'X', 1) == 'aXcabc' && 'abc'.substring(1, 2) == 'b'",
        "'abcabc'.indexOf('c') == 2 && 'abcabc'.lastIndexOf('b') == 4 && 'abcabc'.indexOf('a', 1) == 3 && 'x'.indexOf('y') == -1",
        "'hello'.matches('^h.*o$') && matches('abc', 'b') && 'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1'.find('[0-9]') == '1'",
        "'%s is %d of %.2f, %x %b %%'.format(['a', 1, 0.5, 255, 5]) == 'a is 1 of 0.50, ff 101 %'",
        "'%s'.format([[1, 'a', {'k': true}]]) == '[1, a, {k: true}]'",
        "[1, 2].isSorted() && ![2, 1].isSorted() && [1, 2].sum() == 3 && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].indexOf(2) == 1",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 3])",
        "timestamp('2024-01-02T03:04:05Z').getHours() == 3 && timestamp('2024-01-02T03:04:05Z').getHours('+02:00') == 5",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
        "duration('1h30m').getMinutes() == 90 && string(duration('90s')) == '90s' && duration('1.5s') > duration('1500us')",
        "timestamp('2024-01-07T00:00:00Z').getDayOfWeek() == 0 && timestamp('2024-03-01T00:00:00Z').getMonth() == 2",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('5m') && !isQuantity('x') && quantity('2').add(1).asInteger() == 3",
        "quantity('500m').sub(quantity('1')).sign() == -1 && quantity('1k').compareTo(quantity('1000')) == 0 && !quantity('1m').isInteger()",
        "url('https://a.b:80/c%20d?x=1&x=2').getHost() == 'a.b:80' && url('https://a.b/c?x=1').getQuery()['x'] == ['1']",
        "url('/a/b').getScheme() == '' && isURL('https://x') && !isURL('a b') && url('https://[::1]:80/').getHostname() == '::1'",
        "isIP('1.2.3.4') && ip('::1').family() == 6 && ip('127.0.0.1').isLoopback() && ip.isCanonical('::1') && !ip.isCanonical('0::1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16')) && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "!format.dns1123Label().validate('a-b').hasValue() && format.named('uuid').value().validate('x').hasValue()",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').isLessThan(semver('1.0.0')) && !isSemver('1.2')",
        "{'a': [1, {'b': 2}]} == {'a': [1, {'b': 2}]} && {'a': 1} != {'a': 2} && [1, 2] != [2, 1]",
        "self.containers[0] == {'name': 'c', 'image': 'r/a:1'}",
        "// a comment\n true",
    ] {
        assert_eq!(run(source).as_deref(), Ok("true"), "{source}");
    }
}

#[test]
fn what_comes_to_nothing_says_why() {
    for (source, why) in [
        ("self.nope", "no such key: nope"),
        ("self.list[5]", "index out of bounds: 5"),
        ("self.labels['z']", "no such key: z"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "return error for overflow"),
        ("self.name + self.replicas", "no such overload"),
        ("self.name && true", "no such overload"),
        ("int('x')", "type conversion error"),
        ("{'a': 1, 'a': 2}", "duplicate key"),
        ("duration('1x')", "invalid duration"),
        ("timestamp('x')", "invalid timestamp"),
        ("'abc'.substring(2, 1)", "invalid substring range"),
        (
            "'a'.matches(self.labels['app'] + '(')",
            "invalid matches argument",
        ),
        ("gone.value()", "optional.none() dereference"),
        ("self.name.all(x, true)", "no such overload"),
        ("-self.name", "no such overload"),
    ] {
        let error = run(source).expect_err(source).to_string();
        assert!(error.contains(why), "{source}: {error}");
    }
}

#[test]
fn what_can_not_be_is_refused_before_it_runs() {
    let fields = |all: &[(&str, Shape)]| {
        let all: BTreeMap<Box<str>, Shape> = all
            .iter()
            .map(|(name, shape)| ((*name).into(), shape.clone()))
            .collect();
        Shape::Object(Arc::new(Fields(all)))
    };
    let variables = [(
        "self",
        fields(&[
            ("n", Shape::Int),
            ("s", Shape::Text),
            ("a-b", Shape::Bool),
            ("at", Shape::Timestamp),
            ("list", Shape::List(Arc::new(fields(&[("x", Shape::Int)])))),
            ("map", Shape::Map(Arc::new(Shape::Int))),
        ]),
    )];
    let compile = |source: &str| Program::compile(source, &variables, Wants::Bool).map(drop);
    for source in [
        "self.n > 1 && self.s == 'a' && self.a__dash__b",
        "self.list.all(x, x.x < 5) && self.map['a'] == 1 && self.map.all(k, k == 'a')",
        "self.at < timestamp('2030-01-01T00:00:00Z')",
        "self.map.?a.orValue(3) == 3",
    ] {
        assert_eq!(compile(source), Ok(()), "{source}");
    }
    for (source, why) in [
        ("other", "undeclared reference to 'other' (in container '')"),
        ("self.nope == 1", "undefined field 'nope'"),
        ("has(self.nope)", "undefined field 'nope'"),
        ("self.list.all(x, x.y == 1)", "undefined field 'y'"),
        (
            "self.s.x == 1",
            "type 'string' does not support field selection",
        ),
        (
            "self.n + self.s == 1",
            "found no matching overload for '_+_' applied to '(int, string)'",
        ),
        ("self.n == 'a'", "'_==_' applied to '(int, string)'"),
        ("self.n == 1.0", "'_==_' applied to '(int, double)'"),
        ("self.n && true", "'_&&_' applied to '(int)'"),
        ("self.n.all(x, true)", "cannot be range of a comprehension"),
        (
            "self.list.all(x, x.x)",
            "expected type 'bool' but found 'int'",
        ),
        ("self.n", "must evaluate to bool"),
        (
            "[1].map(x, x).all(x, x == 'a')",
            "'_==_' applied to '(int, string)'",
        ),
        (
            "authorizer.group('').allowed()",
            "undeclared reference to 'group'",
        ),
    ] {
        let error = compile(source).expect_err(source).to_string();
        assert!(error.contains(why), "{source}: {error}");
    }
    let text = |source: &str| Program::compile(source, &variables, Wants::Text).map(drop);
    assert!(text("self.s + 'a'").is_ok());
    assert!(text("self.n").is_err());
}

#[test]
fn a_hostile_expression_has_an_end() {
    let ten = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = (0..10).fold("1".to_owned(), |body, at| {
        format!("{ten}.map(x{at}, {body})")
    });
    let doubled = (0..40).fold("'0123456789'".to_owned(), |text, at| {
        format!("[{text}].map(x{at}, x{at} + x{at})[0]")
    });
    let lists = (0..40).fold("[1, 2]".to_owned(), |list, at| {
        format!("[{list}].map(x{at}, x{at} + x{at})[0]")
    });
    let patterns = format!(
        "{ten}.all(a, {ten}.all(b, {ten}.all(c, {ten}.all(d, !'x'.matches(string(a) + string(b) + string(c) + string(d) + '\\\\w{{50}}')))))"
    );
    for source in [nested, doubled, lists, patterns] {
        let made = run(&source);
        let refused = match &made {
            Err(Error::TooCostly) => true,
            Err(Error::Compile(why)) => why.contains("limit"),
            _ => false,
        };
        assert!(
            refused,
            "{}: {:?}",
            &source[..60],
            made.map(|text| text.len())
        );
    }
}

/// What a thread of tokio's has, less what has been taken when an expression is met.
const STACK: usize = 3 << 19;

#[test]
fn the_deepest_and_the_tallest_expression_fit_on_a_small_stack() {
    let deep = |open: &str, close: &str, count: usize| {
        format!("{}1{}", open.repeat(count), close.repeat(count))
    };
    let sources = [
        deep("1 + ", "", 150),
        deep("(", ")", 60),
        deep("[", "]", 60),
        deep("[1].map(x, ", ")", 60),
        deep("true ? 1 : ", "", 60),
        deep("dyn(", ")", 60),
    ];
    let thread = std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || {
            for source in sources {
                let made = run(&source).map(drop);
                assert_eq!(made, Ok(()), "{}", &source[..20]);
            }
        });
    thread.expect("a thread").join().expect("it fits");
}

#[test]
fn a_budget_is_for_all_that_share_it() {
    let object = json!((0..1000).collect::<Vec<_>>());
    let program = Program::compile("self.all(x, x >= 0)", &[("self", Shape::Any)], Wants::Bool)
        .expect("an expression");
    let mut budget = Budget::of_conditions();
    let mut times = 0;
    while program
        .run(&[("self", Val::json(&object))], &mut budget)
        .is_ok()
    {
        times += 1;
        assert!(times < 10_000, "it has no end");
    }
    assert!(times > 100, "{times}");
}

#[test]
fn shapes_say_what_text_is() {
    let object = json!({"at": "2024-01-01T00:00:00Z", "for": "1h", "data": "YWI=", "ratio": 3});
    let all = [
        ("at", Shape::Timestamp),
        ("for", Shape::Duration),
        ("data", Shape::Bytes),
        ("ratio", Shape::Double),
    ];
    let all = all.into_iter().map(|(name, shape)| (name.into(), shape));
    let shape = Shape::Object(Arc::new(Fields(all.collect())));
    let source = "self.at.getFullYear() == 2024 && self.__for__ == duration('60m') && self.data == b'ab' && self.ratio / 2.0 == 1.5";
    let program = Program::compile(source, &[("self", shape.clone())], Wants::Bool).expect(source);
    let made = program.run(
        &[("self", Val::of(&object, &shape))],
        &mut Budget::of_object(),
    );
    assert!(matches!(made, Ok(Val::Bool(true))), "{made:?}");
}

#[test]
fn what_has_been_worked_out_is_told_and_why_it_could_not_be_too() {
    let program = Program::compile("v.a == 1 || v.b == 1", &[("v", Shape::Any)], Wants::Bool)
        .expect("an expression");
    assert!(program.mentions("v") && !program.mentions("a"));
    let named = Val::named([
        ("a".to_owned(), Ok(Val::Int(2))),
        ("b".to_owned(), Err(Error::Run("no b".to_owned()))),
    ]);
    let made = program.run(&[("v", named)], &mut Budget::of_object());
    assert_eq!(made.map(drop), Err(Error::Run("no b".to_owned())));
}

/// Arithmetic as a plain model has it.
#[derive(Debug, Clone)]
enum Sum {
    Number(i8),
    Of(char, Box<Sum>, Box<Sum>),
}

impl Sum {
    fn text(&self) -> String {
        match self {
            Self::Number(number) => format!("({number})"),
            Self::Of(sign, a, b) => format!("({} {sign} {})", a.text(), b.text()),
        }
    }

    fn value(&self) -> Option<i64> {
        let (sign, a, b) = match self {
            Self::Number(number) => return Some(i64::from(*number)),
            Self::Of(sign, a, b) => (sign, a.value()?, b.value()?),
        };
        match sign {
            '+' => a.checked_add(b),
            '-' => a.checked_sub(b),
            '*' => a.checked_mul(b),
            '/' => a.checked_div(b),
            _ => a.checked_rem(b),
        }
    }
}

fn sums() -> impl Strategy<Value = Sum> {
    let number = any::<i8>().prop_map(Sum::Number);
    number.prop_recursive(6, 40, 2, |sum| {
        let sign = proptest::sample::select(vec!['+', '-', '*', '/', '%']);
        (sign, sum.clone(), sum).prop_map(|(sign, a, b)| Sum::Of(sign, a.into(), b.into()))
    })
}

const PARTS: [&str; 44] = [
    "self",
    "gone",
    ".",
    ".?",
    "name",
    "list",
    "labels",
    "containers",
    "[",
    "[?",
    "]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    "?",
    "1",
    "2u",
    "1.5",
    "-",
    "+",
    "*",
    "/",
    "%",
    "'a'",
    "true",
    "null",
    "==",
    "<",
    "in",
    "&&",
    "||",
    "!",
    ".all(x, x)",
    ".map(x, x)",
    "x",
    ".size()",
    "has(self.name)",
    ".matches('a')",
    ".format([1])",
    "string(1)",
    ".orValue(1)",
];

proptest! {
    #[test]
    fn sums_are_what_a_plain_model_says(sum in sums()) {
        let made = run(&sum.text());
        match sum.value() {
            Some(value) => prop_assert_eq!(made, Ok(format!("Int({value})"))),
            None => prop_assert!(made.is_err()),
        }
    }

    #[test]
    fn conditions_are_what_a_plain_model_says(values in proptest::collection::vec(any::<bool>(), 1..8), all in any::<bool>()) {
        let text: Vec<String> = values.iter().map(ToString::to_string).collect();
        let expected = if all { values.iter().all(|one| *one) } else { values.iter().any(|one| *one) };
        let made = run(&text.join(if all { " && " } else { " || " }));
        prop_assert_eq!(made, Ok(expected.to_string()));
    }

    #[test]
    fn any_words_are_an_expression_or_refused(parts in proptest::collection::vec(proptest::sample::select(PARTS.to_vec()), 0..24)) {
        let _ = run(&parts.concat());
        let _ = run(&parts.join(" "));
    }

    #[test]
    fn any_text_is_an_expression_or_refused(text in ".{0,80}") {
        let _ = run(&text);
    }
}
