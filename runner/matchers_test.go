package runner

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/terraphim/tgr"
)

func TestParseMatchers(t *testing.T) {
	for src, want := range map[string]string{
		`{`: "unexpected end",
		`{"problemMatcher":[{"pattern":[{"regexp":"a","message":0}]}]}`:                                        "needs an owner",
		`{"problemMatcher":[{"owner":"o","pattern":[]}]}`:                                                      "between 1 and",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a"}]}]}`:                                        "no pattern sets message",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"(","message":0}]}]}`:                            "pattern 1",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","message":1}]}]}`:                            "there is no group 1",
		`{"problemMatcher":[{"owner":"o","severity":"bad","pattern":[{"regexp":"a","message":0}]}]}`:           "severity 'bad'",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","message":0,"loop":true}]}]}`:                "may loop",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","message":0,"loop":true},{"regexp":"b"}]}]}`: "may loop",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","message":0},{"regexp":"b","message":0}]}]}`: "more than one pattern",
		`{"problemMatcher":[null]}`: "needs an owner",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","message":0}]},{"owner":"O","pattern":[{"regexp":"a","message":0}]}]}`: "have the owner 'O'",
		`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"(?<=x)(a)\\1","message":0}]}]}`:                                           "",
	} {
		_, err := parseMatchers([]byte(src))
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", src, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	type a = tgr.Annotation
	for _, c := range []struct {
		name, matcher string
		lines         []string
		want          []a
	}{
		{"two lines", `{"owner":"o","severity":"warning","pattern":[{"regexp":"^file (.+)$","file":1},{"regexp":"^at (\\d+): (.*)$","line":1,"message":2}]}`,
			[]string{"file a.c", "at 3: x", "at 4: y", "file b.c", "other", "at 5: z"},
			[]a{{Level: "warning", File: "a.c", Line: 3, Message: "x"}}},
		{"loop", `{"owner":"o","pattern":[{"regexp":"^(\\w+)$","file":1},{"regexp":"^ (\\d+) (.*)$","line":1,"message":2,"loop":true}]}`,
			[]string{"one", " 1 a", " 2 b", "two", " 3 c", "!", " 4 d"},
			[]a{{Level: "error", File: "one", Line: 1, Message: "a"}, {Level: "error", File: "one", Line: 2, Message: "b"}, {Level: "error", File: "two", Line: 3, Message: "c"}}},
		{"a line of two patterns", `{"owner":"o","pattern":[{"regexp":"^(\\S+)","file":1},{"regexp":"^at (\\d+)","line":1},{"regexp":"^! (.*)$","message":1}]}`,
			[]string{"one", "at 1", "at 2", "! no file of one's", "two", "at 3", "! b"},
			[]a{{Level: "error", File: "at", Line: 2, Message: "no file of one's"}, {Level: "error", File: "two", Line: 3, Message: "b"}}},
		{"severity and code", `{"owner":"o","pattern":[{"regexp":"^(\\w+) (\\w+) (.*)$","severity":1,"code":2,"message":3}]}`,
			[]string{"Warning W1 m", "info I1 n", "fatal F1 x", "error E1 "},
			[]a{{Level: "warning", Title: "W1", Message: "m"}, {Level: "notice", Title: "I1", Message: "n"}}},
		{"from path", `{"owner":"o","fromPath":"sub/x.proj","pattern":[{"regexp":"^(.+): (.+)$","file":1,"message":2}]}`,
			[]string{"src/a.c: m", "/w/src/b.c: n"},
			[]a{{Level: "error", File: "sub/src/a.c", Message: "m"}, {Level: "error", File: "src/b.c", Message: "n"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, _ := newTestUnit(t, Limits{})
			u.run.config.Dirs.Workspace = "/w"
			list, err := parseMatchers([]byte(`{"problemMatcher":[` + c.matcher + `]}`))
			if err != nil {
				t.Fatal(err)
			}
			u.run.matchers = list
			for _, line := range c.lines {
				u.run.match(u, line)
			}
			if diff := cmp.Diff(c.want, u.run.result.Annotations, cmpopts.IgnoreFields(a{}, "Step")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestSlowMatcher drops a matcher whose expression explodes.
func TestSlowMatcher(t *testing.T) {
	u, sink := newTestUnit(t, Limits{})
	list, err := parseMatchers([]byte(`{"problemMatcher":[{"owner":"slow","pattern":[{"regexp":"^(a+)+$","message":1}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	u.run.matchers = list
	start := time.Now()
	for range 30 {
		u.run.match(u, strings.Repeat("a", 60)+"!")
	}
	if len(u.run.matchers) != 0 || !strings.Contains(strings.Join(*sink, ""), "Removed issue matcher 'slow'") {
		t.Errorf("it stayed: %q", *sink)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzMatchers(f *testing.F) {
	f.Add(`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"^(.*)$","message":1}]}]}`, "line\nother")
	f.Add(`{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"a","file":0},{"regexp":"b","message":0,"loop":true}]}]}`, "a\nb\nb")
	f.Fuzz(func(t *testing.T, src, text string) {
		list, err := parseMatchers([]byte(src))
		if err != nil {
			return
		}
		u, _ := newTestUnit(t, Limits{})
		u.run.matchers = list
		for line := range strings.SplitSeq(text, "\n") {
			u.run.match(u, line)
		}
		if len(u.run.result.Annotations) > maxJobAnnotations {
			t.Fatalf("%d annotations", len(u.run.result.Annotations))
		}
	})
}
