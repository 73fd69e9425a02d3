package llm

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/terraphim/tgr"
)

// LogLine is a line of a job's log.
type LogLine struct {
	Step int // number of the step
	Text string
}

// Reduction is what is left of a log: a sixth of its lines at most, chosen by rules. It is useful without any model.
type Reduction struct {
	Total int             // lines of the log
	Cause int             // number of the line that most likely tells why; 0: there is none
	Lines []tgr.CitedLine // in the log's order, stripped
}

// Bounds of a reduction.
const (
	mostKept  = 150     // lines
	leastKept = 10      // lines, of short logs
	keptPart  = 6       // one line in so many is kept
	longLine  = 400     // bytes of a line that are shown
	mostLines = 200_000 // of a log: of a longer one the last ones
	before    = 2       // lines of context
	after     = 4
)

// Known is what recent successes of the same job have printed: such lines do not tell why it failed. The zero value
// knows nothing.
type Known struct{ templates map[string]struct{} }

// Learn adds the lines of a success.
func (k *Known) Learn(lines []LogLine) {
	if k.templates == nil {
		k.templates = map[string]struct{}{}
	}
	for _, l := range lines[max(0, len(lines)-mostLines):] {
		k.templates[template(Strip(l.Text))] = struct{}{}
	}
}

// variable is what differs between two runs of the same thing: times, hex, numbers, temporary names.
var variable = lazily(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[0-9.,:+Z-]*|\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F-]{22}\b|\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{7,64}\b|/tmp/[A-Za-z0-9._-]+|\d+(?:\.\d+)?(?:ns|µs|ms|s|m|h|B|kB|KB|MB|GB|KiB|MiB|GiB|%)?\b`)

// template is a line without what differs between runs.
func template(s string) string {
	if len(s) > 2*longLine {
		s = s[:2*longLine]
	}
	return variable().ReplaceAllString(strings.Join(strings.Fields(s), " "), "#")
}

// sign is a form of words, and what it says about a line being the cause.
type sign struct {
	re    func() *regexp.Regexp
	worth int
}

// The signs. They were chosen from the output of the tools that they name, and are measured on logs/ in testdata.
// A line has the worth of its best sign, and of its worst.
var (
	good = []sign{
		{lazily(`^(?:E\s{2,}\S|\s*panic: |fatal error: |\s*thread '.*' .*panicked)`), 12},
		{lazily(`\berror(?:\[E\d+\])?: |\bTS\d{4,5}\b|: error\b|^\s*Error: |^error\b|\bERROR: `), 10},
		{lazily(`\b[A-Za-z_.]*(?:Error|Exception|Panic)\b(?:\s\[\w+\])?(?::|$)`), 10},
		{lazily(`(?i)\bundefined reference\b|multiple definition|\bNo rule to make\b|missing separator|segmentation fault|core dumped|double free|out of memory|\bOOM\b|cannot allocate`), 11},
		{lazily(`(?i)\bno such file|not found\b|cannot (?:find|open|import|load|use|access|reach)|could not (?:find|resolve|open|connect)|connection refused|ECONNREFUSED|ENOENT|permission denied|access denied|unauthorized|timed out|time-?out|no space left|\bkilled\b|\bdenied\b`), 9},
		{lazily(`^npm (?:error|ERR!) (?:code|Missing|request|JSON|notsup|E[A-Z]+)`), 9},
		{lazily(`^\[ERROR\] .*(?:\.java:|symbol|expected|Tests? |Failed|Could not|Non-|Malformed|exist)`), 9},
		{lazily(`^\s*(?:\S*/)?[\w.-]+\.(?:go|py|rs|ts|tsx|js|mjs|jsx|c|cc|cpp|h|java|kt|rb|php|cs|tf|swift|scala):\d+(?::\d+)?:?\s`), 9},
		{lazily(`(?i)\bassert(?:ion)?\b.*(?:fail|==|!=|left|right)|\bexpected\b.*\b(?:got|but|was|saw|received|actual)\b|\bwant\b|!==|values to be`), 8},
		{lazily(`(?i)^\s*\d+:\d+\s+error\s`), 11},
		{lazily(`(?i)\b(?:fatal|exception|panic|abort(?:ed)?|invalid|illegal|unexpected|undefined|undeclared|unresolved|unsupported|unknown|missing|mismatch(?:ed)?|incompatible|not allowed|does not|doesn't|did not|cannot|can't|unable|refused|failed to|terminate)\b`), 6},
		{lazily(`(?i)^\s*(?:--- FAIL|not ok|✖|×|FAILED?\b)|\bfail(?:ed|ure|ures|ing)?\b|\berrors?\b`), 4},
		{lazily(`(?i)\bwarn(?:ing)?\b`), 1},
	}
	poor = []sign{ // what only says that something failed, or is noise beside it
		{lazily(`^##\[error\]Process completed|exit(?:ed with)? (?:code|status) |Error \d+$|^make(?:\[\d+\])?: \*\*\*.*Error`), -9},
		{lazily(`^(?:FAIL\s|FAILED$|FAIL$|ok\s|PASS\b|--- PASS|=== )|test result: FAILED|error: test failed|\d+ target failed|To rerun|could not compile|aborting due to|For more information|Some errors have detailed|previous error`), -7},
		{lazily(`^\[ERROR\] (?:-> )?\[Help|Re-run Maven|full stack trace|Failed to execute goal|please read|^\[ERROR\]\s*$|^\[INFO\]|COMPILATION ERROR|BUILD FAILURE|There are test failures`), -7},
		{lazily(`complete log of this run|npm (?:verbose|info|http|silly)|npm error (?:path|workspace|location|command|A complete)|Lifecycle script`), -8},
		{lazily(`(?i)\b(?:0|no) (?:errors?|failures?|failed)\b|Failures?: 0|Errors?: 0|failed=0|error_log|errors? found: 0|-Werror|--error|on_error|\d+ passed; 0 failed`), -8},
		{lazily(`^\s*at .*\((?:node:|internal/|.*site-packages|java\.|sun\.|jdk\.)|^\s*at (?:java|sun|org\.junit|jdk|node:)|^\s*at async|^\tat `), -7},
		{lazily(`^\s*\|?\s*(?:note|help|hint): |^\s*= (?:note|help)`), -4},
		{lazily(`^(?:test \S+ \.\.\. ok|\S+::\S+ PASSED|\s*✔|\s*✓|##\[(?:group|endgroup)\]|[A-Z_]+=)`), -12},
	}
)

// worth is how much a line says of a failure; at most 12.
func worth(s string) int {
	up, down := 0, 0
	for _, g := range good {
		if g.worth > up && g.re().MatchString(s) {
			up = g.worth
		}
	}
	if up == 0 {
		return 0
	}
	for _, p := range poor {
		if p.worth < down && p.re().MatchString(s) {
			down = p.worth
		}
	}
	return up + down
}

// scored is a line with its worth.
type scored struct{ at, worth int }

// Reduce chooses what to keep of the log of a failed job: the lines that say most by their words, that no recent
// success has printed, of the step that failed (0: not known), with their context, and the end.
func Reduce(lines []LogLine, failed int, known Known) Reduction {
	skipped := max(0, len(lines)-mostLines)
	lines = lines[skipped:]
	r := Reduction{Total: skipped + len(lines)}
	if len(lines) == 0 {
		return r
	}
	text := make([]string, len(lines))
	for i, l := range lines {
		text[i] = cut(strings.TrimRight(Strip(firstOf(l.Text, 4*longLine)), "\n "), longLine)
	}
	all := score(lines, text, failed, known)
	budget := min(mostKept, max(leastKept, len(lines)/keptPart))
	keep := make([]bool, len(lines))
	kept := 0
	take := func(from, to int) {
		for i := max(0, from); i <= min(to, len(lines)-1) && kept < budget; i++ {
			if !keep[i] && text[i] != "" {
				keep[i] = true
				kept++
			}
		}
	}
	take(len(lines)-2, len(lines)-1)
	for _, s := range all { // the anchors first: none of them is lost to the context of another
		if kept >= budget*2/3 {
			break
		}
		take(s.at, s.at)
	}
	for _, s := range all {
		take(s.at-before, s.at+after)
	}
	take(len(lines)-budget, len(lines)-1) // nothing speaks: the end is the best guess
	if len(all) > 0 {
		r.Cause = skipped + all[0].at + 1
	}
	for i, k := range keep {
		if k {
			r.Lines = append(r.Lines, tgr.CitedLine{N: skipped + i + 1, Step: lines[i].Step, Text: text[i]})
		}
	}
	return r
}

func firstOf(s string, n int) string { return s[:min(len(s), n)] }

// score sorts the lines that say something, the most telling first; of equals the first in the log.
func score(lines []LogLine, text []string, failed int, known Known) []scored {
	var all []scored
	seen := map[string]int{}
	for i, s := range text {
		t := template(s)
		_, old := known.templates[t]
		w := worth(s)
		switch {
		case old:
			w -= 8
		case len(known.templates) > 0 && strings.TrimSpace(s) != "":
			w += 3
		}
		if failed > 0 && lines[i].Step != failed {
			w -= 4
		}
		if n := seen[t]; n > 0 { // the same again says less each time
			w -= min(2*n, 8)
		}
		seen[t]++
		if w > 0 {
			all = append(all, scored{i, w})
		}
	}
	slices.SortStableFunc(all, func(a, b scored) int { return cmp.Compare(b.worth, a.worth) })
	return all
}
