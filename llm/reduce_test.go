package llm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// failingLog is an entry of testdata/logs/index.json: see testdata/logs/main.go, which made them by running the tools.
type failingLog struct {
	Log, Tool, Success, Cause string
	Line, Lines               int
}

func failingLogs(t *testing.T) []failingLog {
	t.Helper()
	data, err := os.ReadFile("testdata/logs/index.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []failingLog
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// readLog numbers the steps by the runner's own marks.
func readLog(t *testing.T, name string) []LogLine {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/logs", name))
	if err != nil {
		t.Fatal(err)
	}
	var lines []LogLine
	step := 0
	for l := range strings.SplitSeq(strings.TrimSuffix(string(data), "\n"), "\n") {
		if strings.HasPrefix(l, "##[group]Run ") {
			step++
		}
		lines = append(lines, LogLine{Step: step, Text: l})
	}
	return lines
}

// TestReductionKeepsTheCause is the bar: of at least 100 logs that real tools wrote, the line that tells the cause is
// kept in 95 % while 80 % of all lines are dropped, with the templates of a success and without.
func TestReductionKeepsTheCause(t *testing.T) {
	logs := failingLogs(t)
	if len(logs) < 100 {
		t.Errorf("%d failing logs, want at least 100", len(logs))
	}
	for _, with := range []bool{true, false} {
		t.Run(fmt.Sprintf("successes=%v", with), func(t *testing.T) {
			kept, first, lines, left := 0, 0, 0, 0
			for _, f := range logs {
				var known Known
				if with {
					known.Learn(readLog(t, f.Success))
				}
				log := readLog(t, f.Log)
				if !strings.Contains(log[f.Line-1].Text, f.Cause) {
					t.Fatalf("%s:%d does not hold %q: make the logs again", f.Log, f.Line, f.Cause)
				}
				r := Reduce(log, log[len(log)-1].Step, known)
				lines += r.Total
				left += len(r.Lines)
				found := false
				for _, l := range r.Lines {
					found = found || l.N == f.Line
				}
				if found {
					kept++
				} else {
					t.Logf("lost: %s:%d: %s", f.Log, f.Line, log[f.Line-1].Text)
				}
				if r.Cause == f.Line {
					first++
				} else if testing.Verbose() && r.Cause > 0 {
					t.Logf("%s: %d, taken for the cause: %d: %s", f.Log, f.Line, r.Cause, log[r.Cause-1].Text)
				}
			}
			t.Logf("%d logs: the cause is kept in %d (%.1f %%) and named first in %d (%.1f %%); %.1f %% of %d lines are dropped", len(logs),
				kept, 100*float64(kept)/float64(len(logs)), first, 100*float64(first)/float64(len(logs)), 100*(1-float64(left)/float64(lines)), lines)
			if kept*100 < 95*len(logs) {
				t.Errorf("the cause is kept in %d of %d logs, want 95 %%", kept, len(logs))
			}
			if left*100 > 20*lines {
				t.Errorf("%d of %d lines are left, want at most 20 %%", left, lines)
			}
		})
	}
}

// TestReduceBounds holds for whatever a log is: real lines, in order, none twice, within the budget, printable.
func TestReduceBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"error: x", "ok", "", "panic: y", "\x1b[31mError: z\x1b[0m", strings.Repeat("é", 900)})), 0, 400).Draw(t, "lines")
		var lines []LogLine
		for i, s := range texts {
			lines = append(lines, LogLine{Step: 1 + i/50, Text: s})
		}
		var known Known
		if rapid.Bool().Draw(t, "known") {
			known.Learn(lines[:len(lines)/2])
		}
		r := Reduce(lines, rapid.IntRange(0, 9).Draw(t, "failed"), known)
		if r.Total != len(lines) || len(r.Lines) > max(leastKept, len(lines)/keptPart) || r.Cause > len(lines) {
			t.Fatalf("%d lines: total %d, kept %d, cause %d", len(lines), r.Total, len(r.Lines), r.Cause)
		}
		last := 0
		for _, l := range r.Lines {
			if l.N <= last || l.N > len(lines) || lines[l.N-1].Step != l.Step {
				t.Fatalf("line %d after %d of %d", l.N, last, len(lines))
			}
			if len(l.Text) > longLine+len("…") || Strip(l.Text) != l.Text {
				t.Fatalf("line %d is not fit to show: %q", l.N, l.Text)
			}
			last = l.N
		}
	})
}
