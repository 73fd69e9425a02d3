package workflow

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// npmParser is the version of GitHub's own parser that TestDifferential compares with.
const npmParser = "@actions/workflow-parser@0.3.61"

// TestDifferential damages real workflow files and GitHub's own test files, and compares with GitHub's own parser for
// editors, run by node: accepted or refused, and if refused, the first line that is wrong. TGR_MUTANTS says how many
// files are compared. It needs the npm package: in $TGR_NPM_DIR/node_modules, or with TGR_NETWORK=1 it is installed
// into the user's cache.
func TestDifferential(t *testing.T) {
	dir := npmDir(t)
	n := 1500
	if s := os.Getenv("TGR_MUTANTS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	seed := uint64(2026)
	if s := os.Getenv("TGR_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	m := mutator{r: rand.New(rand.NewPCG(seed, 7)), files: mutable(t)}
	srcs := make([]string, n)
	var input bytes.Buffer
	enc := json.NewEncoder(&input)
	for i := range srcs {
		srcs[i] = m.next()
	}
	for _, c := range languageCases() {
		srcs = append(srcs, c.src)
	}
	for i := range srcs {
		if err := enc.Encode(map[string]string{"src": srcs[i]}); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("node", filepath.Join("testdata", "differential.mjs"), dir)
	cmd.Stdin, cmd.Stderr = &input, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("node: ", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	stats := map[string]int{}
	for i, src := range srcs {
		if !lines.Scan() {
			t.Fatal("node answered too few lines")
		}
		theirs := decode[struct{ Errors []theirProblem }](t, lines.Bytes()).Errors
		verdict, ok := agree(src, theirs)
		stats[verdict]++
		if !ok {
			file := filepath.Join(os.TempDir(), fmt.Sprintf("mutant-%d.yml", i))
			if os.Getenv("TGR_KEEP") != "" {
				os.WriteFile(file, []byte(src), 0o644)
			}
			t.Errorf("%s: %s\n%s", file, verdict, sideBySide(src, theirs))
		}
	}
	for _, k := range sortedKeys(stats) {
		t.Logf("%5d %s", stats[k], k)
	}
}

// theirProblem is one that GitHub's parser reports.
type theirProblem struct {
	Line, Column int
	Message      string
}

// sideBySide are the first problems of both.
func sideBySide(src string, theirs []theirProblem) string {
	var b strings.Builder
	slices.SortStableFunc(theirs, func(x, y theirProblem) int { return x.Line - y.Line })
	for _, p := range theirs[:min(len(theirs), 3)] {
		fmt.Fprintf(&b, "  theirs %d:%d: %s\n", p.Line, p.Column, strings.ReplaceAll(p.Message, "\n", " "))
	}
	ours := parseProblems(src)
	for _, p := range ours[:min(len(ours), 3)] {
		fmt.Fprintf(&b, "  ours   %d:%d: %s\n", p.Line, p.Column, p.Message)
	}
	return b.String()
}

func parseProblems(src string) []Problem {
	_, problems := Parse("w.yml", []byte(src))
	return slices.DeleteFunc(problems, func(p Problem) bool { return p.Severity != SeverityError })
}

// justified are the differences that are meant, by what they or we say. The keys of our list are rules, or parts of
// messages; those of theirs are parts of messages.
var justified = struct{ ours, theirs map[string]string }{
	ours: map[string]string{
		"uses":                    "GitHub's server checks the form of uses; its parser for editors does not",
		"the tag '":               "the tags of the core schema alone are known, as to the server",
		"as its tag":              "a value has to be what its tag says, as to the server",
		"<<":                      "merge keys are keys like others to the parser for editors; the server refuses them",
		"cron":                    "the server refuses cron lines that the parser for editors lets pass, such as 1,,2",
		"at least one event":      "the server: no event triggers defined in on",
		"a key must not be empty": "an empty key stops the parser for editors from reading on",
		"time zone":               "time zones have to exist",
		"is not UTF-8":            "files are UTF-8",
		"the default of":          "defaults have the type of their input",
		"does not match any key within the matrix": "the server expands the matrix",
		"vector":                              "the server expands the matrix",
		"not valid YAML":                      "libyaml, and with it the server, reads no such YAML",
		"queue: max":                          "documented, and not checked by the parser for editors",
		"the container image cannot be empty": "the server takes docker:// off, and looks at what is left",
		"is not valid: ":                      "patterns have to be such, which the parser for editors does not look at",
		"snapshot:":                           "the package does not yet know the contexts of snapshot",
	},
	theirs: map[string]string{
		"cache-mode":                "the package is older than the key",
		"encountered while reading": "the parser for editors does not take expressions for mappings; the server does",
		" at line ":                 "their YAML parser refuses what libyaml, and with it the server, reads",
		"thrown: ":                  "the parser for editors failed",
		"is not a function":         "the parser for editors failed",
		"Expected a scalar value, a sequence, or a mapping": "the parser for editors failed",
		"is not 'choice', but":                              "no harm is done: a warning",
		"deprecationMessage":                                "the package takes it for workflow_call alone",
		"snapshot:":                                         "the package does not yet know the contexts of snapshot",
		"repository_dispatch:":                              "the package takes types as a list alone; the server takes one type as well",
		": &":                                               "a node begins at its anchor, as in libyaml",
		": !":                                               "a node begins at its tag, as in libyaml",
	},
}

// agree compares the verdicts on one file. The text says how they agree or differ.
func agree(src string, theirs []theirProblem) (verdict string, ok bool) {
	_, all := Parse("w.yml", []byte(src))
	places := map[int]bool{}
	var ours []Problem
	for _, p := range all {
		places[p.Line] = true // warnings too: where GitHub's parsers disagree, we accept and warn
		if p.Severity == SeverityError {
			ours = append(ours, p)
		}
	}
	if len(ours) == 0 && len(theirs) == 0 {
		return "both accept", true
	}
	excused := ""
	for _, p := range ours {
		for part, why := range justified.ours {
			if p.Rule == part || strings.Contains(p.Message+"\n"+context(src, p.Line), part) {
				excused = why
			}
		}
	}
	known := 0
	for _, p := range theirs {
		for part, why := range justified.theirs {
			if strings.Contains(p.Message+"\n"+context(src, p.Line), part) {
				excused = why
			}
		}
		if places[p.Line] {
			known++
		}
	}
	switch {
	case len(ours) == 0 && known == len(theirs):
		return "only they refuse, we warn at each place", true
	case excused != "" && (len(ours) == 0 || len(theirs) == 0):
		return "justified: " + excused, true
	case len(ours) == 0:
		return "only they refuse", false
	case len(theirs) == 0:
		return "only we refuse", false
	}
	return sameProblems(ours, theirs, known, excused)
}

// context is a line with the three before it.
func context(src string, line int) string {
	lines := strings.Split("\n"+src, "\n")
	return strings.Join(lines[max(line-3, 0):min(line+1, len(lines))], "\n")
}

// sameProblems compares the verdicts on a file that both refuse.
func sameProblems(ours []Problem, theirs []theirProblem, known int, excused string) (verdict string, ok bool) {
	first := theirs[0]
	for _, p := range theirs {
		if p.Line < first.Line || p.Line == first.Line && p.Column < first.Column {
			first = p
		}
	}
	switch {
	case ours[0].Line == first.Line && ours[0].Column == first.Column:
		return "both refuse, first at the same place", true
	case ours[0].Rule == "yaml":
		return "both refuse, not YAML", true
	case known == len(theirs):
		// They stop after the first phase of errors, we go on; and our problem may be their second in the same line.
		return "both refuse, and we also say what is theirs", true
	case excused != "":
		return "justified: " + excused, true
	}
	return "both refuse at different places", false
}

// npmDir returns a folder whose node_modules holds the package, or skips the test.
func npmDir(t *testing.T) string {
	t.Helper()
	const skipped = "SKIPPED, NOT COMPARED WITH GITHUB'S PARSER: "
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip(skipped + "no node on this machine")
	}
	dir := os.Getenv("TGR_NPM_DIR")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(skipped, err)
		}
		dir = filepath.Join(cache, "tgr", "npm")
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "@actions", "workflow-parser", "package.json")); err == nil {
		return dir
	}
	if os.Getenv("TGR_NETWORK") != "1" {
		t.Skip(skipped + "set TGR_NETWORK=1 or TGR_NPM_DIR to a folder with " + npmParser)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", dir, npmParser).CombinedOutput()
	if err != nil {
		t.Fatalf("npm install %s: %v\n%s", npmParser, err, out)
	}
	return dir
}

// mutable are the files to damage: small real ones, and GitHub's own tests twice, as they are denser.
func mutable(t *testing.T) []string {
	var out []string
	files, _ := filepath.Glob(filepath.Join(suite(t, "workflow-reader"), "*.yml"))
	for _, f := range files {
		docs := documentEnd.Split(string(readFile(t, f)), -1)
		out = append(out, docs[1], docs[1])
	}
	files, _ = filepath.Glob(filepath.Join(suite(t, "workflows"), "*"))
	for _, f := range files {
		if b := readFile(t, f); len(b) < 3000 {
			out = append(out, string(b))
		}
	}
	files, _ = filepath.Glob(filepath.Join("testdata", "ok", "*.yml"))
	for _, f := range files {
		out = append(out, string(readFile(t, f)), string(readFile(t, f)))
	}
	return out
}

// mutator damages files.
type mutator struct {
	r     *rand.Rand
	files []string
}

var (
	mutantKey  = regexp.MustCompile(`^(\s*(?:- )?)([A-Za-z_][\w-]*):(\s*)(.*)$`)
	mutantKeys = strings.Fields(`on name run-name env defaults permissions concurrency jobs runs-on needs if steps uses with secrets
		strategy matrix fail-fast max-parallel include exclude container services image ports volumes options credentials
		username password outputs environment url deployment timeout-minutes continue-on-error run shell working-directory
		id group labels cancel-in-progress queue cron timezone types branches branches-ignore tags paths inputs required
		default type description value wait wait-all cancel parallel background snapshot image-name version entrypoint
		command cancel-timeout-minutes cache-mode contents issues id-token models attestations nosuch x deprecationMessage`)
	mutantValues = []string{"", "null", "~", "true", "false", "1", "0", "-1.5", "[]", "{}", "[a, b]", "[a, [b]]", "{a: b}", "{a: {b: c}}",
		"''", `""`, `"x"`, "x", "a b", "read", "write", "none", "read-all", "write-all", "inherit", "string", "boolean", "number", "choice", "environment",
		"${{ github.ref }}", "${{ secrets.X }}", "${{ matrix.a }}", "${{ env.X }}", "${{ steps.a.outputs.b }}", "${{ needs.a.result }}", "${{ inputs.x }}", "${{ vars.x }}",
		"${{ jobs.a.outputs.b }}", "${{ runner.os }}", "${{ job.status }}", "${{ strategy.job-index }}", "${{ hashFiles('a') }}", "${{ success() }}", "${{ always() }}",
		"${{ nosuch }}", "${{ nosuch() }}", "${{ }}", "${{ a", "${{ 'a' }}", "${{ 1 + 1 }}", "${{ format('{0}') }}", "x ${{ github.sha }} y ${{ github.ref }}", "x ${{ github. }} y",
		"${{ insert }}", "x ${{ insert }}", "always()", "success() && x", "github.ref == 'x'", "!cancelled()", "!(github.ref)", "failure('a')", "job-1", "__x", "1a", "a.b", "docker://x", "docker://",
		"./a", "./.github/workflows/a.yml", "a/b@c", "a/b/.github/workflows/c.yml@v1", "a/b", "a@b", "push", "[push, pull_request]", "{push: null}", "schedule", "workflow_call", "workflow_dispatch",
		"'* * * * *'", "'0 0 * *'", "x/y", "org/x", "!!str 1", "!!int x", "&a x", "*a", "| x", ">-", "0x1F", "1e3", ".inf", "on", "yes", "2024-01-01", "{a: 1, A: 2}", "[{run: x}]", "[{uses: a/b@c}]",
		"{group: x}", "{group: x, nosuch: y}", "{run: {shell: bash}}", "{contents: read}", "{contents: admin}", "{nosuch: read}", "{contents: null}", "{name: x, url: y}", "{url: y}",
		"{image: x}", "{image: ''}", "{}", "{matrix: {a: [1]}}", "{matrix: x}", "{matrix: {a: b}}", "{matrix: {include: [{a: 1}]}}", "{cron: x}", "[{cron: '0 0 * * *'}]", "[1, true, null]"}
	mutantChars = []string{":", "-", "[", "]", "{", "}", "\"", "'", "#", "\t", "&", "*", "!", "|", ">", "%", "@", "`", ",", "?", " ", "\n", "ä", "\\"}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (m *mutator) next() string {
	lines := strings.Split(pick(m.r, m.files), "\n")
	for range 1 + m.r.IntN(2) {
		lines = m.mutate(lines)
	}
	return strings.Join(lines, "\n")
}

func (m *mutator) mutate(lines []string) []string {
	i := m.r.IntN(len(lines))
	for range 10 { // prefer lines with a key
		if mutantKey.MatchString(lines[i]) {
			break
		}
		i = m.r.IntN(len(lines))
	}
	line := lines[i]
	parts := mutantKey.FindStringSubmatch(line)
	lines = slices.Clone(lines)
	switch kind := m.r.IntN(12); {
	case kind == 0:
		return slices.Delete(lines, i, i+1)
	case kind == 1:
		return slices.Insert(lines, i, line)
	case kind == 2:
		lines[i] = pick(m.r, []string{" ", "  "}) + line
	case kind == 3:
		lines[i] = strings.TrimPrefix(line, pick(m.r, []string{" ", "  "}))
	case kind == 4 && m.r.IntN(3) == 0:
		at := m.r.IntN(len(line) + 1)
		lines[i] = line[:at] + pick(m.r, mutantChars) + line[at:]
	case kind == 5 && line != "":
		at := m.r.IntN(len(line))
		lines[i] = line[:at] + line[at+1:]
	case parts == nil:
		return slices.Delete(lines, i, i+1)
	case kind <= 8:
		lines[i] = parts[1] + parts[2] + ": " + pick(m.r, mutantValues)
	case kind == 9:
		lines[i] = parts[1] + pick(m.r, mutantKeys) + ":" + parts[3] + parts[4]
	default:
		indent := strings.ReplaceAll(parts[1], "-", " ")
		return slices.Insert(lines, i, indent+pick(m.r, mutantKeys)+": "+pick(m.r, mutantValues))
	}
	return lines
}
