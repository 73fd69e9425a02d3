package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBenchPlan(t *testing.T) {
	workspace(t, map[string]string{
		".github/workflows/a.yml":    "on: push\njobs: {a: {runs-on: x}}\n",
		".github/workflows/b.yaml":   "on: [push\n",
		".github/workflows/c.json":   "{}",
		"empty/.keep":                "",
		"elsewhere/deeper/wrong.yml": "jobs: 1\n",
	})
	out, code := verb(t, newBenchPlanCmd(), "--passes", "1", "--act-files", "0")
	if code != 0 || !strings.Contains(out, "tgr: parse, match and compile for a push  2 ") || !strings.Contains(out, "allocations per file: ") {
		t.Errorf("exit status %d: %s", code, out)
	}
	out, code = verb(t, newBenchPlanCmd(), "--passes", "1", "--act-files", "0", "elsewhere")
	if code != 0 || !strings.Contains(out, "tgr: parse, match and compile for a push  1 ") {
		t.Errorf("exit status %d: %s", code, out)
	}
	for _, args := range []string{"empty", "nowhere", "--passes 0 .", "a b"} {
		if out, code := verb(t, newBenchPlanCmd(), strings.Fields(args)...); code != 2 {
			t.Errorf("%s: exit status %d: %s", args, code, out)
		}
	}
}

func TestBenchPlanVerdict(t *testing.T) {
	for _, tt := range []struct {
		mean  time.Duration
		ofAct float64
		want  string
	}{
		{300 * time.Microsecond, 0.1, "allocations per file: 10, 2.0 KB\nat most 0.3 ms of CPU per file: met\nat most 10 % of act -l, a process each: met\n"},
		{301 * time.Microsecond, 0.11, "allocations per file: 10, 2.0 KB\nat most 0.3 ms of CPU per file: MISSED\nat most 10 % of act -l, a process each: MISSED\n"},
		{time.Microsecond, 0, "allocations per file: 10, 2.0 KB\nat most 0.3 ms of CPU per file: met\n"},
	} {
		var out strings.Builder
		b := benchPlan{out: &out}
		if err := b.verdict(allocations{10, 2048}, tt.mean, tt.ofAct); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}
