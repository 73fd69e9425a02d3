package expr_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/expr"
)

// npmPackage is the version of GitHub's TypeScript evaluator that TestDifferential compares with.
const npmPackage = "@actions/expressions@0.3.61"

// differentialContexts are what the generated expressions see.
const differentialContexts = `{
	"github": {"Ref": "refs/heads/main", "event": {"labels": [{"name": "bug", "n": 1}, {"name": "Ü", "n": null}, 3], "Number": 7}},
	"list": [1, "2", null, true, {"a": {"b": 1}}, [1, [2, 3]], {"A": {"b": "x"}}],
	"map": {"one": {"v": [1, 2], "w": 0}, "two": {"V": [3, {"k": "z"}]}, "three": "text", "": "empty", "1.5": "key"},
	"text": "Hello World", "num": -12.5, "zero": 0, "yes": true, "no": false, "nothing": null,
	"empty": {}, "none": [], "deep": [[[[1], 2], 3], {"x": [{"y": [{"z": 1}, {"z": 2}]}, {"y": {"z": 3}}]}]
}`

// TestDifferential compares 12,000 generated expressions with GitHub's TypeScript evaluator, run by node. It needs
// the npm package: in $TGR_NPM_DIR/node_modules, or with TGR_NETWORK=1 it is installed into the user's cache.
//
// There may be no difference but those that testdata/differential.mjs lists and undoes, and these, which are not generated:
//   - ß, ſ and İ: the runner folds case one character to one, JavaScript makes SS, S and i̇ of them;
//   - white space other than blank, tab and newline between words: the runner takes all of Unicode's;
//   - objects with keys like "10" in JSON: JavaScript moves them to the front; and keys such as "constructor",
//     which every JavaScript object has;
//   - a lone surrogate in JSON: our strings are Unicode, and it becomes U+FFFD;
//   - budgets: ours stop what would take 10 MiB.
func TestDifferential(t *testing.T) {
	dir := npmDir(t)
	r := rand.New(rand.NewPCG(20, 26))
	var contexts json.RawMessage = []byte(differentialContexts)
	var exprs []string
	var input bytes.Buffer
	enc := json.NewEncoder(&input)
	for range 12_000 {
		g := generator{r: r}
		text := g.expression(1 + r.IntN(4))
		if r.IntN(6) == 0 {
			text = g.damage(text)
		}
		exprs = append(exprs, text)
		if err := enc.Encode(map[string]any{"expr": text, "contexts": contexts}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("node", filepath.Join("testdata", "differential.mjs"), dir)
	cmd.Stdin = &input
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("node: ", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	stats := map[string]int{}
	for _, text := range exprs {
		if !lines.Scan() {
			t.Fatal("node answered too few lines")
		}
		var want, got differentialAnswer
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		got = answer(t, text, contexts)
		stats[want.Error+want.Kind]++
		if diff := cmp.Diff(want, got); diff != "" {
			message := want.Message
			t.Errorf("%s: (-TypeScript +ours)\n%s%s", text, diff, message)
		}
	}
	t.Log(stats)
}

// differentialAnswer is a line of differential.mjs. Message is for people.
type differentialAnswer struct {
	Kind    string
	Value   any
	Error   string
	Message string `cmp:"-"`
}

func (a differentialAnswer) Equal(b differentialAnswer) bool {
	return a.Kind == b.Kind && a.Error == b.Error && cmp.Equal(a.Value, b.Value)
}

func answer(t *testing.T, text string, contexts json.RawMessage) differentialAnswer {
	t.Helper()
	v, err := evalText(text, suiteEnv(t, contexts))
	if err != nil {
		return differentialAnswer{Error: err.(*expr.Error).Kind.String(), Message: err.Error()}
	}
	data, err := v.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	a := differentialAnswer{Kind: v.Kind().String()}
	if err := json.Unmarshal(data, &a.Value); err != nil {
		t.Fatal(text, ": ", err)
	}
	return a
}

// npmDir returns a folder whose node_modules holds the package, or skips the test.
func npmDir(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("SKIPPED, NOT COMPARED WITH GITHUB'S EVALUATOR: no node on this machine")
	}
	dir := os.Getenv("TGR_NPM_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip("SKIPPED, NOT COMPARED WITH GITHUB'S EVALUATOR: ", err)
		}
		dir = filepath.Join(cache, "tgr", "npm")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@actions", "expressions", "package.json")); err == nil {
		return dir
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skip("SKIPPED, NOT COMPARED WITH GITHUB'S EVALUATOR: set TGR_NETWORK=1 or TGR_NPM_DIR to a folder with " + npmPackage)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", dir, npmPackage).CombinedOutput()
	if err != nil {
		t.Fatalf("npm install %s: %v\n%s", npmPackage, err, out)
	}
	return dir
}

// generator writes expressions of the language's whole grammar, most of them valid.
type generator struct{ r *rand.Rand }

func (g *generator) pick(list []string) string { return list[g.r.IntN(len(list))] }

var (
	genNumbers = strings.Fields("0 1 2 3 -1 +1 .5 -.5 1.5 0.1 1e3 1E-3 1.2e+2 0xff 0xFF 0o17 0b11 123456.789 NaN Infinity -Infinity +Infinity " +
		"1e15 1e-5 0.0001 123456789012345 1234567890123456 0.84551240822557006 1e21 1e300 -0 -0.0 1. 4294967296 0xffffffffff 9007199254740993")
	genTexts = []string{"", " ", "a", "A", "b", "abc", "ABC", "hello", "world", "o W", "Hello World", "0", "1", " 1 ", "-0", "0xff", "0o10", "0b1",
		"1e2", " +1.5 ", "Infinity", "-Infinity", "NaN", "null", "true", "false", "name", "n", "v", "V", "x", "y", "z", "ref", "one", "it''s", "''", "''''",
		"ü", "Ü", "ς", "Σ", "σ", "ı", "I", "i", "é", "😀", "｡", "ä¶", "refs/heads/", "{0}", "{1}", "{0} {1} {0}", "{{", "}}", "{", "}", "{{{0}}}", "{0", "{a}",
		"{0x}", "{ 0}", "{300}", "Object", "Array", "\t1\n", "1_0", "1,2", "--1", "."}
	genJSON = []string{"[]", "{}", "[1,2,3]", " [1, [2, {\"a\": [null]}]] ", "{\"a\":1,\"A\":2,\"b\":{\"c\":[true]}}", "{\"a\":1,\"a\":2}", "1e400", "-0",
		"\"x\\u00e9\\n\\ud83d\\ude00\"", "nul", "[1,]", "{\"a\"}", "01", "1.", "\"\\x\"", "\"\t\"", "[[[[]]]]", "0.1", "123456789012345678", "1 2", "[\"\\\"\\\\/\u007f\"]", "tru", "-", "[1"}
	genNames   = []string{"github", "list", "map", "text", "num", "zero", "yes", "no", "nothing", "empty", "none", "deep", "GitHub", "LIST", "Map"}
	genProps   = []string{"ref", "Ref", "event", "labels", "name", "n", "number", "one", "two", "v", "w", "a", "b", "x", "y", "z", "k", "nosuch", "true", "null", "NaN", "a-b", "_"}
	genOps     = []string{"==", "!=", "<", "<=", ">", ">=", "&&", "||"}
	genCalls   = []string{"contains", "startsWith", "endsWith", "format", "join", "toJSON", "fromJSON", "case", "toJson", "CONTAINS", "Format"}
	genDamages = strings.Split("( ) [ ] , . ' ! = < > & | * { } - + 0 x a \" # ;  \t \n _ $ nosuch nosuch() 1 true", " ")
)

func (g *generator) space() string { return g.pick([]string{"", "", "", " ", "  ", "\n", "\t"}) }

func (g *generator) literal() string {
	switch g.r.IntN(8) {
	case 0:
		return "true"
	case 1:
		return "false"
	case 2:
		return "null"
	case 3, 4:
		return g.pick(genNumbers)
	default:
		return "'" + g.pick(genTexts) + "'"
	}
}

// reference is a context, or now and then a call, with indexes.
func (g *generator) reference(depth int) string {
	s := g.pick(genNames)
	switch g.r.IntN(8) {
	case 0:
		s = "fromJSON('" + g.pick(genJSON) + "')"
	case 1:
		s = "(" + g.expression(depth-1) + ")"
	}
	for range g.r.IntN(5) {
		s += g.space()
		switch g.r.IntN(6) {
		case 0:
			s += ".*"
		case 1:
			s += "[*]"
		case 2:
			s += "[" + g.space() + g.expression(depth-1) + g.space() + "]"
		case 3:
			s += "[" + g.pick([]string{"0", "1", "2", "'1'", "1.9", "-1", "'name'", "true", "null", "''"}) + "]"
		default:
			s += "." + g.space() + g.pick(genProps)
		}
	}
	return s
}

func (g *generator) expression(depth int) string {
	if depth <= 0 {
		if g.r.IntN(3) == 0 {
			return g.pick(genNames)
		}
		return g.literal()
	}
	switch g.r.IntN(10) {
	case 0:
		return g.literal()
	case 1, 2:
		return g.reference(depth)
	case 3:
		return "!" + g.space() + g.expression(depth-1)
	case 4:
		return "(" + g.expression(depth-1) + ")"
	case 5, 6:
		return g.call(depth)
	default:
		s := g.expression(depth - 1)
		for range 1 + g.r.IntN(2) {
			s += " " + g.space() + g.pick(genOps) + g.space() + g.expression(depth-1)
		}
		return s
	}
}

func (g *generator) call(depth int) string {
	name := g.pick(genCalls)
	args := g.r.IntN(5)
	if g.r.IntN(4) > 0 { // mostly as many as it takes
		switch strings.ToLower(name) {
		case "tojson", "fromjson":
			args = 1
		case "case":
			args = 3 + 2*g.r.IntN(2)
		case "format":
			args = 1 + g.r.IntN(3)
		default:
			args = 2
		}
	}
	var list []string
	for range args {
		list = append(list, g.space()+g.expression(depth-1)+g.space())
	}
	if strings.EqualFold(name, "fromjson") && g.r.IntN(3) > 0 && args == 1 {
		list[0] = "'" + g.pick(genJSON) + "'"
	}
	if strings.EqualFold(name, "tojson") && g.r.IntN(2) > 0 && args == 1 {
		list[0] = g.reference(depth)
	}
	return name + g.space() + "(" + strings.Join(list, ",") + ")"
}

// damage changes a few characters.
func (g *generator) damage(s string) string {
	for range 1 + g.r.IntN(2) {
		runes := []rune(s)
		i := g.r.IntN(len(runes) + 1)
		switch {
		case g.r.IntN(2) == 0 || i == len(runes):
			s = string(runes[:i]) + g.pick(genDamages) + string(runes[i:])
		default:
			s = string(runes[:i]) + string(runes[i+1:])
		}
	}
	return s
}
