//! Constraints: whatever is sampled under one satisfies it, and grammars that mean harm are refused.

use millpond::sample::grammar::{Grammar, GrammarCompiler, GrammarError, GrammarSource};
use millpond::sample::random::{Purpose, uniform};
use millpond::text::{Tokenizer, TokenizerConfig};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/delta48m");
    let read = |name| std::fs::read(folder.join(name)).expect("readable");
    let config = TokenizerConfig::parse(&read("tokenizer_config.json")).expect("valid");
    Arc::new(Tokenizer::from_json(&read("tokenizer.json"), Some(&config)).expect("valid"))
});
/// More logits than tokens, as padded embedding matrices have.
const LOGITS: usize = 16_400;
static COMPILER: LazyLock<GrammarCompiler> =
    LazyLock::new(|| GrammarCompiler::new(TOKENIZER.clone(), LOGITS).expect("a compiler"));

fn compile(source: GrammarSource) -> Result<Grammar, GrammarError> {
    COMPILER.compile(&source)
}

/// Follows the mask with random choices until an end token; shorter tokens of complete texts first, so that it ends.
fn generate(grammar: &mut Grammar, seed: u64) -> String {
    let mut ids = Vec::new();
    for position in 0..400 {
        let complete = grammar.is_complete().expect("a state");
        let mask = grammar.mask().expect("a mask");
        assert!(mask.count() > 0);
        assert!((TOKENIZER.vocabulary_size() as u32..LOGITS as u32).all(|id| !mask.allows(id)));
        let allowed: Vec<u32> = (0..LOGITS as u32).filter(|&id| mask.allows(id)).collect();
        assert_eq!(complete, allowed.iter().any(|&id| TOKENIZER.is_end_of_generation(id)));
        let ends = complete && (position > 200 || uniform(seed, position, Purpose::Xtc) < 0.5);
        let place = (uniform(seed, position, Purpose::Token) * allowed.len() as f64) as usize;
        let id = if ends { 2 } else { allowed[place] };
        grammar.accept(id).expect("allowed by the mask");
        if TOKENIZER.is_end_of_generation(id) {
            assert!(grammar.is_finished());
            return TOKENIZER.decode(&ids, false);
        }
        ids.push(id);
    }
    panic!("no end: {:?}", TOKENIZER.decode(&ids, false));
}

#[test]
fn text_under_a_schema_satisfies_it() {
    let schema = json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue \"dark\""]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["colour", "count", "flags"],
        "additionalProperties": false,
    });
    for seed in 0..20 {
        let mut grammar = compile(GrammarSource::JsonSchema(schema.clone())).expect("compiles");
        let text = generate(&mut grammar, seed);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert!(["red", "green", "blue \"dark\""].contains(&value["colour"].as_str().expect("text")));
        assert!((0..=99).contains(&value["count"].as_i64().expect("a number")));
        let flags = value["flags"].as_array().expect("a list");
        assert!(flags.len() <= 3 && flags.iter().all(Value::is_boolean));
        assert_eq!(value.as_object().expect("an object").len(), 3);
    }
}

#[test]
fn text_under_a_pattern_or_grammar_matches_it() {
    for seed in 0..20 {
        let mut grammar = compile(GrammarSource::Regex("(ab|c){2,4}-[0-9]{3}".into())).expect("compiles");
        let text = generate(&mut grammar, seed);
        let (head, digits) = text.split_once('-').expect("a dash");
        let parts = head.replace("ab", "x").replace('c', "x");
        assert!((2..=4).contains(&parts.len()) && parts.chars().all(|c| c == 'x'), "{text:?}");
        assert!(digits.len() == 3 && digits.chars().all(|c| c.is_ascii_digit()), "{text:?}");

        let lark = "start: \"(\" start \")\" | \"x\"";
        let text = generate(&mut compile(GrammarSource::Lark(lark.into())).expect("compiles"), seed);
        let depth = text.matches('(').count();
        assert_eq!(text, format!("{}x{}", "(".repeat(depth), ")".repeat(depth)));
    }
}

const JSON_GBNF: &str = r##"
# values and what they are made of
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (member ("," ws member)*)? "}" ws
member ::= string ":" ws value
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) ){0,9} "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,5})) ("." [0-9]{1,3})? ws
ws     ::= | " " | "\n" [ \t]{0,4}
"##;

#[test]
fn text_under_a_gbnf_grammar_satisfies_it() {
    for seed in 0..12 {
        let text = generate(&mut compile(GrammarSource::Gbnf(JSON_GBNF.into())).expect("compiles"), seed);
        let value: Result<Value, _> = serde_json::from_str(&text);
        // A lone surrogate (\\uD800) satisfies the grammar but is no text.
        assert!(value.is_ok() || text.contains("\\u"), "{text:?}: {value:?}");
        let flat = "root ::= item{2,3}\nitem ::= \"- \" [^\\n/]{1,5} \"\\n\"";
        let text = generate(&mut compile(GrammarSource::Gbnf(flat.into())).expect("compiles"), seed);
        let lines: Vec<&str> = text.lines().collect();
        assert!((2..=3).contains(&lines.len()) && text.ends_with('\n'), "{text:?}");
        assert!(
            lines.iter().all(|line| line.starts_with("- ") && (3..=7).contains(&line.chars().count())),
            "{text:?}"
        );
    }
}

#[test]
fn gbnf_accepts_what_it_describes_and_nothing_else() {
    let takes = |grammar: &str, text: &str| {
        let mut grammar =
            compile(GrammarSource::Gbnf(grammar.into())).unwrap_or_else(|error| panic!("{grammar}: {error}"));
        let ids = TOKENIZER.encode(text, false).expect("encodes");
        let taken = grammar.accepted_of(&ids).expect("a count");
        ids.iter().take(taken).for_each(|&id| grammar.accept(id).expect("allowed"));
        taken == ids.len() && grammar.is_complete().expect("a state")
    };
    let sums =
        "root ::= sum \"=\" num\nsum ::= term ([-+] term)*\nterm ::= num | \"(\" sum \")\"\nnum ::= [0-9]+";
    assert!(
        takes(sums, "1+(2-34)=5")
            && !takes(sums, "1+(2-34=5")
            && !takes(sums, "1+=5")
            && !takes(sums, "1=5x")
    );
    let any = "root ::= . .{2} | \"\u{e9}\\u00e9\\x2F\"";
    assert!(takes(any, "a\nb") && takes(any, "\u{e9}\u{e9}/") && !takes(any, "ab") && !takes(any, "abcd"));
    let options = "root ::= ( \"a\"\n | \"b\" # or\n )? tail\ntail::=[\\]\\-x]+";
    assert!(takes(options, "a]-x") && takes(options, "x") && !takes(options, "ab") && !takes(options, ""));
    let recursive = "root ::= \"\" | \"a\" root \"b\"";
    assert!(takes(recursive, "") && takes(recursive, "aabb") && !takes(recursive, "aab"));
}

#[test]
fn gbnf_that_is_none_is_refused() {
    for source in [
        "",
        "root",
        "root ::= x",
        "a ::= \"b\"",
        "root ::= \"a",
        "root ::= [a",
        "root ::= []",
        "root ::= [z-a]",
        "root ::= (\"a\"",
        "root ::= \"a\" )",
        "root ::= \"a\"{2",
        "root ::= \"a\"{3,2}",
        "root ::= \"a\"{1,100000}",
        "root ::= \"\\q\"",
        "root ::= \"\\uD800\"",
        "root ::= \"a\"\nroot ::= \"b\"",
        "root ::= *",
        "root ::= <[3]>",
        "root ::= \"\\x\u{e9}\"",
    ] {
        assert!(
            matches!(compile(GrammarSource::Gbnf(source.into())), Err(GrammarError::Invalid(_))),
            "{source}"
        );
    }
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(matches!(compile(GrammarSource::Gbnf(deep)), Err(GrammarError::Depth { .. })));
    // Brackets that balance within literals hide the depth of the others from a count.
    let hidden = format!("root ::= {}\"a\"{}", "(\")\"".repeat(5000), ")".repeat(5000));
    assert!(matches!(compile(GrammarSource::Gbnf(hidden)), Err(GrammarError::Depth { .. })));
    let rules: String = (0..20_000).map(|rule| format!("r{rule} ::= \"a\"\n")).collect();
    assert!(matches!(
        compile(GrammarSource::Gbnf(format!("root ::= r0\n{rules}"))),
        Err(GrammarError::Invalid(_))
    ));
}

#[test]
fn control_tokens_never_pass_for_text() {
    let mut grammar = compile(GrammarSource::Regex("<\\|im_start\\|>.*".into())).expect("compiles");
    let mask = grammar.mask().expect("a mask");
    assert!(mask.count() > 0 && !mask.allows(1));
    let mut object = compile(GrammarSource::JsonObject).expect("compiles");
    let mask = object.mask().expect("a mask");
    assert!((0..7).all(|id| !mask.allows(id)));
}

#[test]
fn states_roll_back_and_fork() {
    let ids = TOKENIZER.encode("{\"name\": \"dragon\"}", false).expect("encodes");
    let mut grammar = compile(GrammarSource::JsonObject).expect("compiles");
    assert_eq!(grammar.accepted_of(&ids), Ok(ids.len()));
    let wrong =
        [TOKENIZER.token_id("{").expect("a token"), TOKENIZER.token_id("]").expect("a token"), u32::MAX];
    assert_eq!(grammar.accepted_of(&wrong), Ok(1));
    assert_eq!(grammar.accepted_of(&[u32::MAX]), Ok(0));
    let before = grammar.mask().expect("a mask").clone();
    ids.iter().for_each(|&id| grammar.accept(id).expect("allowed"));
    assert_eq!(grammar.is_complete(), Ok(true));
    let mut other = grammar.fork();
    grammar.rollback(ids.len()).expect("as many as were taken");
    assert_eq!(*grammar.mask().expect("a mask"), before);
    other.accept(2).expect("an end token");
    assert!(other.is_finished() && !grammar.is_finished());
    assert_eq!(grammar.accept(2), Err(GrammarError::Token { token: 2 }));
    assert_eq!(grammar.accept(u32::MAX), Err(GrammarError::Token { token: u32::MAX }));
    assert_eq!(*grammar.mask().expect("a refused token changes nothing"), before);
}

#[test]
fn grammars_that_cannot_be_met_are_refused() {
    let deep =
        |open: &str, close: &str, count: usize| format!("{}a{}", open.repeat(count), close.repeat(count));
    let nested =
        (0..120).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));
    let refused = [
        GrammarSource::Regex(deep("(", ")", 60_000)),
        GrammarSource::Regex("(?<=a)b".into()),
        GrammarSource::Regex("(".into()),
        GrammarSource::Regex("a".repeat(1 << 20)),
        GrammarSource::Lark(format!("start: {}", deep("(", ")", 60_000))),
        GrammarSource::Lark("start: missing".into()),
        GrammarSource::Lark(String::new()),
        GrammarSource::JsonSchema(nested),
        GrammarSource::JsonSchema(json!({"type": "nonsense"})),
        GrammarSource::JsonSchema(json!({"$ref": "https://example.org/schema.json"})),
        GrammarSource::JsonSchema(json!({"$ref": "#/missing"})),
        GrammarSource::JsonSchema(json!({"type": "string", "pattern": "(?=a)b"})),
        GrammarSource::JsonSchema(json!({"not": {"type": "string"}})),
        GrammarSource::JsonSchema(json!({"type": "integer", "minimum": 5, "maximum": 4})),
        GrammarSource::JsonSchema(json!(7)),
        GrammarSource::JsonSchema(json!(false)),
    ];
    let mut wrong = Vec::new();
    for source in refused {
        let name: String = format!("{source:?}").chars().take(100).collect();
        match compile(source) {
            Err(GrammarError::Size { .. } | GrammarError::Depth { .. } | GrammarError::Invalid(_)) => {}
            other => wrong.push((name, other.map(|mut grammar| grammar.mask().map(|mask| mask.count())))),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Grammars on the edge: each compiles or is refused, and if it compiles the mask is not empty.
#[test]
fn heavy_grammars_compile_or_are_refused() {
    let names: Vec<String> = (0..100_000).map(|index| format!("name-{index}")).collect();
    let properties: serde_json::Map<String, Value> = (0..2000)
        .map(|index| (format!("p{index}"), json!({"type": "string", "pattern": "^[a-z]{3,9}$"})))
        .collect();
    let heavy = [
        GrammarSource::JsonSchema(json!({"enum": names})),
        GrammarSource::JsonSchema(json!({"enum": names[..20_000]})),
        GrammarSource::JsonSchema(json!({"type": "object", "properties": properties})),
        GrammarSource::JsonSchema(
            json!({"type": "array", "minItems": 100_000, "items": {"type": "integer"}}),
        ),
        GrammarSource::JsonSchema(json!({"type": "string", "minLength": 100_000, "maxLength": 200_000})),
        GrammarSource::JsonSchema(
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        GrammarSource::JsonSchema(
            json!({"$defs": {"tree": {"type": "object", "properties": {"child": {"$ref": "#/$defs/tree"}}}}, "$ref": "#/$defs/tree"}),
        ),
        GrammarSource::JsonSchema(
            json!({"allOf": (0..200).map(|index| json!({"minProperties": index})).collect::<Vec<_>>()}),
        ),
        GrammarSource::JsonSchema(
            json!({"anyOf": vec![json!({"type": "string", "pattern": "(a|b)*c(a|b){12}"}); 50]}),
        ),
        GrammarSource::Regex("[a-z]{1,100000}{1,100000}".into()),
        GrammarSource::Regex("(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})".into()),
        GrammarSource::Regex("(a+)+$".into()),
        GrammarSource::Regex("a{1,100000}".into()),
        GrammarSource::Regex("(a|b)*a(a|b){18}".into()),
        GrammarSource::Regex("(.*a.*){20}".into()),
        GrammarSource::Lark("start: start \"a\" | \"b\"".into()),
        GrammarSource::Lark("start: start start | \"a\"".into()),
        GrammarSource::Lark(format!("start: {}", vec!["\"a\""; 20_000].join(" "))),
        GrammarSource::Lark(format!("start: {}", vec!["\"a\""; 20_000].join(" | "))),
    ];
    for source in heavy {
        let name: String = format!("{source:?}").chars().take(100).collect();
        match compile(source) {
            Err(GrammarError::Size { .. } | GrammarError::Depth { .. } | GrammarError::Invalid(_)) => {}
            Err(other) => panic!("{name}: {other}"),
            Ok(mut grammar) => match grammar.mask() {
                Ok(mask) => assert!(mask.count() > 0, "{name}"),
                Err(error) => assert!(matches!(error, GrammarError::Stopped(_)), "{name}: {error}"),
            },
        }
    }
}

#[test]
fn a_vocabulary_without_an_end_cannot_be_constrained() {
    let json = json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), None).expect("valid");
    assert_eq!(GrammarCompiler::new(Arc::new(tokenizer), 2).map(|_| ()), Err(GrammarError::NoEnd));
    let error = GrammarCompiler::new(TOKENIZER.clone(), 100).map(|_| ());
    assert_eq!(error, Err(GrammarError::Vocabulary { tokens: 16_384, logits: 100 }));
}
