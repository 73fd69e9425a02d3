package web

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// outline is a log as the page folds it: + is open and - is closed.
func outline(steps []logStep) string {
	var b strings.Builder
	fold := map[bool]string{true: "+", false: "-"}
	text := func(r logRow) string {
		s := fmt.Sprint(r.Line, " ")
		for _, span := range r.Spans {
			s += span.Text
		}
		return s
	}
	for _, s := range steps {
		fmt.Fprintf(&b, "%s %s#%s\n", fold[s.Open], s.Name, s.ID)
		for _, i := range s.Items {
			if !i.Group {
				fmt.Fprintf(&b, "    %s\n", text(i.logRow))
				continue
			}
			fmt.Fprintf(&b, "  %s %s\n", fold[i.Open], text(i.logRow))
			for _, l := range i.Lines {
				fmt.Fprintf(&b, "      %s\n", text(l))
			}
		}
	}
	return b.String()
}

func TestLogView(t *testing.T) {
	ended := func(n int, id, name string, c tgr.Conclusion) tgr.Step {
		return tgr.Step{Number: n, ID: id, Name: name, Status: tgr.Completed, Conclusion: c, Outcome: c}
	}
	good := tgr.Job{Conclusion: tgr.Success, Steps: []tgr.Step{ended(1, "__setup", "Set up job", tgr.Success), ended(2, "a", "Build", tgr.Success)}}
	bad := tgr.Job{Conclusion: tgr.Failure, Steps: []tgr.Step{ended(1, "__setup", "Set up job", tgr.Success), ended(2, "a", "Build", tgr.Success), ended(3, "b", "Test", tgr.Failure)}}
	running := tgr.Job{Steps: []tgr.Step{{Number: 1, Name: "Build", Status: tgr.InProgress}}}
	for _, tt := range []struct {
		name  string
		job   tgr.Job
		lines string // the step's number and the text
		want  string
		group bool
	}{
		{"groups", good, "0 machine\n1 ready\n2 ##[group]Run make\n2 make\n2 ##[endgroup]\n2 built",
			"+ Job#step-0\n    1 machine\n- Step 1: Set up job#step-1\n    2 ready\n+ Step 2: Build#step-2\n  - 3 Run make\n      4 make\n    6 built\n", false},
		{"what failed is open", bad, "1 ready\n2 built\n3 ##[group]Tests\n3 ##[error]no\n3 ##[endgroup]",
			"- Step 1: Set up job#step-1\n    1 ready\n- Step 2: Build#step-2\n    2 built\n+ Step 3: Test#step-3\n  + 3 Tests\n      4 Error: no\n", false},
		{"a group that goes on", running, "1 ##[group]Tests\n1 one", "+ Step 1: Build#step-1\n  - 1 Tests\n      2 one\n", true},
		{"steps side by side", running, "1 a\n7 b\n1 c", "+ Step 1: Build#step-1\n    1 a\n+ Step 7#step-7\n    2 b\n+ Step 1: Build#\n    3 c\n", false},
		{"ends and begins that do not match", running, "1 ##[endgroup]\n1 ##[group]a\n1 ##[group]b\n1 c\n1 ##[endgroup]\n1 ##[endgroup]\n1 ##[group]d\n2 e",
			"+ Step 1: Build#step-1\n  - 2 a\n  - 3 b\n      4 c\n  - 7 d\n+ Step 2#step-2\n    8 e\n", false},
		{"a mark within a line is text", running, "1 x ##[group]a\n1 ##[grou", "+ Step 1: Build#step-1\n    1 x ##[group]a\n    2 ##[grou\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := logView{job: tt.job}
			for i, l := range strings.Split(tt.lines, "\n") {
				v.line(i+1, tgr.LogLine{Step: int(l[0] - '0'), Text: l[2:]})
			}
			if diff := cmp.Diff(tt.want, outline(v.steps)); diff != "" || v.group != tt.group {
				t.Errorf("in a group: %v; -want +got\n%s", v.group, diff)
			}
		})
	}
}

// Every line is on the page once, whatever marks a step prints, but for the ends of groups.
func FuzzLogView(f *testing.F) {
	f.Add("##[group]a\nb\n##[endgroup]\nc", uint8(1))
	f.Add("##[endgroup]\n##[group]\n##[group]##[error]\n\xff", uint8(3))
	f.Fuzz(func(t *testing.T, text string, steps uint8) {
		v, want := logView{}, 0
		lines := strings.Split(text, "\n")
		for i, l := range lines {
			v.line(i+1, tgr.LogLine{Step: i % (int(steps)%4 + 1), Text: l})
			if !strings.HasPrefix(l, "##[endgroup]") {
				want++
			}
		}
		got, last, ids := 0, 0, map[string]bool{}
		seen := func(r logRow) {
			if got++; r.Line <= last {
				t.Fatalf("line %d comes after line %d", r.Line, last)
			}
			last = r.Line
		}
		for _, s := range v.steps {
			if s.ID != "" && ids[s.ID] {
				t.Fatalf("two elements have the id %s", s.ID)
			}
			ids[s.ID] = true
			for _, i := range s.Items {
				seen(i.logRow)
				for _, l := range i.Lines {
					seen(l)
				}
			}
		}
		if got != want {
			t.Fatalf("%d lines are shown of %d", got, want)
		}
	})
}
