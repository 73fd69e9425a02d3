package workflow

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// seeds adds the files of testdata that match.
func seeds(f *testing.F, patterns ...string) {
	f.Helper()
	for _, p := range patterns {
		files, _ := filepath.Glob(filepath.Join("testdata", p))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
}

func FuzzParse(f *testing.F) {
	seeds(f, "ok/*.yml", "err/*.yml")
	f.Fuzz(func(t *testing.T, src []byte) {
		w, problems := Parse("x.yml", src)
		for _, p := range problems {
			if p.Line < 0 || p.Message == "" || p.Rule == "" || p.File == "" {
				t.Errorf("half a problem: %+v", p)
			}
		}
		if w == nil {
			if !Failed(problems) {
				t.Error("nothing usable and no error")
			}
			return
		}
		if Failed(problems) {
			return
		}
		for _, e := range w.Events {
			w.Match(Trigger{Event: e.Name, Ref: "refs/heads/main", Changed: func() ([]string, error) { return []string{"a/b"}, nil }})
			p, problems := Compile(w, Options{Trigger: Trigger{Event: e.Name}, Limits: Limits{Calls: 3}, Load: func(uses string) (Loaded, error) {
				return Loaded{File: uses, Data: src}, nil
			}})
			if p == nil {
				if !Failed(problems) {
					t.Error("no plan and no error")
				}
				continue
			}
			exercise(t, p)
		}
	})
}

// exercise decides on and expands every job, and stores and loads the plan.
func exercise(t *testing.T, p *Plan) {
	s := &Scope{GitHub: map[string]any{"ref": "x"}}
	for i := range p.Jobs {
		if _, err := p.Jobs[i].Decide(p, s); err != nil {
			continue
		}
		in, err := p.Jobs[i].Expand(p, s)
		if err == nil && (len(in) == 0 || len(in) > MaxMatrix) {
			t.Errorf("%d instances", len(in))
		}
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again Plan
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseAction(f *testing.F) {
	seeds(f, "action/*.yml")
	f.Fuzz(func(t *testing.T, src []byte) {
		if a, problems := ParseAction("action.yml", src); a == nil && !Failed(problems) {
			t.Error("nothing usable and no error")
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"**/a*", "v[0-9]+.?", `\*`, "[]", "**/**/x", "a+?b*", "[^-a]"} {
		f.Add(s, "a/b/v1.0")
	}
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(name) > 4096 {
			return
		}
		p, err := compilePattern(pattern)
		if err != nil {
			return
		}
		p.match(name)
		if !strings.ContainsAny(pattern, `*?+[\`) && pattern != name && p.match(name) && strings.ToValidUTF8(name, "\ufffd") != strings.ToValidUTF8(pattern, "\ufffd") {
			t.Errorf("%q matches %q", pattern, name)
		}
	})
}

func FuzzCron(f *testing.F) {
	for _, s := range []string{"*/5 * * * *", "0 0 29 2 mon-fri/2", "1,2-3/4 * ? * 7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if c, err := ParseCron(line); err == nil && (c.Shortest() <= 0 || c.minute == 0 || c.weekday == 0) {
			t.Errorf("%q is due at no time: %+v", line, c)
		}
	})
}
