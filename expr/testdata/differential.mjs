// Answers expressions with GitHub's TypeScript evaluator, for TestDifferential. Usage: node differential.mjs DIR,
// where DIR/node_modules holds @actions/expressions. Each line of standard input is {"expr":…,"contexts":{…}}, each
// line of output {"kind":…,"value":…} or {"error":"lexing|parsing|evaluation","message":…}.
//
// The evaluator is changed in the points where it differs from GitHub's runner, which executes workflows and which we follow.
// These, with those that the generator avoids (see differential_test.go), are all the differences there are:
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";
import {resolve} from "node:path";

const dist = p => pathToFileURL(resolve(process.argv[2], "node_modules/@actions/expressions/dist", p));
const {Lexer, Parser, Evaluator, wellKnownFunctions, data} = await import(dist("index.js"));
const {TokenType} = await import(dist("lexer.js"));

// 1. Numbers become text with 15 significant digits and .NET's exponents (1E+15, 1E-05); the TypeScript evaluator
//    rounds to 15 decimals and prints as JavaScript does. toJSON prints the same text, where TypeScript has null for NaN.
data.NumberData.prototype.coerceString = function () {
  const f = this.value;
  if (f === 0) return "0";
  if (!isFinite(f)) return String(f);
  const [m, e] = f.toExponential(14).split("e");
  const digits = m.replace(/\.?0+$/, "");
  const exp = Number(e);
  if (exp >= -4 && exp < 15) {
    const fixed = f.toFixed(Math.max(14 - exp, 0));
    return fixed.includes(".") ? fixed.replace(/\.?0+$/, "") : fixed;
  }
  return `${digits}E${exp < 0 ? "-" : "+"}${String(Math.abs(exp)).padStart(2, "0")}`;
};
const {replacer} = await import(dist("data/replacer.js"));
wellKnownFunctions.tojson.call = value =>
  new data.StringData(
    JSON.stringify(
      value,
      (k, v) => (v instanceof data.NumberData ? `\u0001${v.coerceString()}\u0001` : replacer(k, v)),
      "  "
    ).replace(/"\\u0001([^\\]*)\\u0001"/g, "$1")
  );

// 2. '' in a string is a quote each time, not only the first time.
const consumeString = Lexer.prototype.consumeString;
Lexer.prototype.consumeString = function () {
  consumeString.call(this);
  const token = this.tokens[this.tokens.length - 1];
  if (token.type === TokenType.STRING) token.value = token.lexeme.slice(1, -1).replaceAll("''", "'");
};

// 3. case computes only the predicates up to the first true one, and its result.
const visitFunctionCall = Evaluator.prototype.visitFunctionCall;
Evaluator.prototype.visitFunctionCall = function (call) {
  if (call.functionName.lexeme.toLowerCase() !== "case") return visitFunctionCall.call(this, call);
  const last = call.args.length - 1;
  for (let i = 0; i < last; i += 2) {
    const when = this.eval(call.args[i]);
    if (when.kind !== data.Kind.Boolean) throw new Error("case predicate must evaluate to a boolean value");
    if (when.value) return this.eval(call.args[i + 1]);
  }
  return this.eval(call.args[last]);
};

// 4. A format placeholder is digits alone, of a value below 256; TypeScript takes anything after the digits.
const format = wellKnownFunctions.format.call;
wellKnownFunctions.format.call = (...args) => {
  const text = args[0].coerceString().replaceAll("{{", "").replaceAll("}}", "");
  if (/\{\d+[^\d}]/.test(text)) throw new Error("The following format string is invalid");
  return format(...args);
};

const kinds = {
  [data.Kind.String]: "String",
  [data.Kind.Array]: "Array",
  [data.Kind.Dictionary]: "Object",
  [data.Kind.Boolean]: "Boolean",
  [data.Kind.Number]: "Number",
  [data.Kind.Null]: "Null"
};

function plain(v) {
  switch (v.kind) {
    case data.Kind.Number:
      return isFinite(v.value) ? v.value : String(v.value);
    case data.Kind.Array:
      return v.values().map(plain);
    case data.Kind.Dictionary:
      return Object.fromEntries(v.pairs().map(p => [p.key, plain(p.value)]));
    case data.Kind.Null:
      return null;
    default:
      return v.value;
  }
}

function answer({expr, contexts}) {
  let stage = "lexing";
  try {
    const context = JSON.parse(JSON.stringify(contexts), data.reviver);
    const {tokens} = new Lexer(expr).lex();
    stage = "parsing";
    const tree = new Parser(tokens, Object.keys(contexts), []).parse();
    stage = "evaluation";
    const result = tree === undefined ? new data.Null() : new Evaluator(tree, context).evaluate();
    return {kind: kinds[result.kind], value: plain(result)};
  } catch (e) {
    return {error: stage, message: e.message};
  }
}

for await (const line of createInterface({input: process.stdin})) {
  process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\n");
}
