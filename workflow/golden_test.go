package workflow

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(readFile(t, path)), string(got)); diff != "" {
		t.Errorf("%s (-want +got)\n%s", path, diff)
	}
}

func indented(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// report is what is kept of a file's problems.
func report(problems []Problem) []byte {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.String() + "\n")
		if p.Excerpt != "" {
			b.WriteString("    " + strings.ReplaceAll(p.Excerpt, "\n", "\n    ") + "\n")
		}
	}
	return []byte(b.String())
}

func each(t *testing.T, pattern string, f func(t *testing.T, file, base string)) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no files match %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { f(t, file, strings.TrimSuffix(file, ".yml")) })
	}
}

func TestGoldenPlans(t *testing.T) {
	each(t, "testdata/ok/*.yml", func(t *testing.T, file, base string) {
		w, problems := Parse(file, readFile(t, file))
		if len(problems) > 0 {
			t.Fatalf("%s", report(problems))
		}
		p, problems := Compile(w, Options{Trigger: Trigger{Event: w.Events[0].Name}})
		if len(problems) > 0 {
			t.Fatalf("%s", report(problems))
		}
		got := indented(t, p)
		golden(t, base+".json", got)

		var again Plan
		if err := json.Unmarshal(got, &again); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(indented(t, &again))); diff != "" {
			t.Errorf("a plan does not survive its own JSON (-before +after)\n%s", diff)
		}
		events := indented(t, map[string]any{"events": w.Events, "dispatch": w.Dispatch, "inputs": w.Inputs, "secrets": w.Secrets, "outputs": w.Outputs})
		golden(t, base+".on.json", events)
	})
}

func TestGoldenProblems(t *testing.T) {
	each(t, "testdata/err/*.yml", func(t *testing.T, file, base string) {
		_, problems := Parse(file, readFile(t, file))
		if len(problems) == 0 {
			t.Fatal("no problem was found")
		}
		golden(t, base+".out", report(problems))
	})
}

func TestGoldenActions(t *testing.T) {
	each(t, "testdata/action/*.yml", func(t *testing.T, file, base string) {
		a, problems := ParseAction(file, readFile(t, file))
		if Failed(problems) {
			golden(t, base+".out", report(problems))
			return
		}
		golden(t, base+".json", indented(t, a))
	})
}
