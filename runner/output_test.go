package runner

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/expr"
	"github.com/terraphim/tgr/workflow"
)

// lines is a sink that keeps the log.
type lines []string

func (l *lines) Line(line tgr.LogLine) { *l = append(*l, line.Text) }
func (l *lines) Steps([]tgr.Step)      {}

// newTestUnit returns a step of a job that is not run.
func newTestUnit(t testing.TB, limits Limits, secrets ...string) (*unit, *lines) {
	t.Helper()
	sink := &lines{}
	job := Job{Plan: &workflow.Plan{}, Job: &workflow.Job{}}
	r := &run{config: Config{Sink: sink, Limits: limits, Now: func() time.Time { return time.Time{} }}.orDefaults(job), job: job}
	r.site = onMachine{r}
	r.mask = newMasker(r.config.Limits.Masks, r.config.Limits.MaskBytes)
	r.top = &scope{steps: expr.NewObject()}
	for _, s := range secrets {
		if err := r.addMask(s); err != nil {
			t.Fatal(err)
		}
	}
	rec := r.add(tgr.Step{Name: "step"})
	r.current = rec
	return &unit{run: r, sc: r.top, src: &workflow.Step{}, rec: rec}, sink
}

// print writes a text in chunks and returns what was logged.
func print(t testing.TB, limits Limits, text string, chunk int, secrets ...string) []string {
	t.Helper()
	u, sink := newTestUnit(t, limits, secrets...)
	o := newOutput(u)
	for text != "" {
		n := min(chunk, len(text))
		if k, err := o.Write([]byte(text[:n])); k != n || err != nil {
			t.Fatalf("Write: %d, %v", k, err)
		}
		text = text[n:]
	}
	o.Close()
	return *sink
}

func TestOutputLines(t *testing.T) {
	for in, want := range map[string][]string{
		"":                     {},
		"a":                    {"a"},
		"a\n":                  {"a"},
		"a\n\nb":               {"a", "", "b"},
		"a\r\nb\rc\n\rd":       {"a", "b", "c", "", "d"},
		"\r\n":                 {""},
		"\xff\xfe ok":          {"\ufffd ok"},
		"é\n":                  {"é"},
		"::group::x\ny\n":      {"##[group]x", "y"},
		"x secret y\nsec\nret": {"x *** y", "sec", "ret"},
	} {
		for chunk := 1; chunk < 5; chunk++ {
			if diff := cmp.Diff(want, print(t, Limits{}, in, chunk, "secret")); diff != "" {
				t.Errorf("%q in chunks of %d: -want +got:\n%s", in, chunk, diff)
			}
		}
	}
}

func TestOutputLongLine(t *testing.T) {
	long := strings.Repeat("0123456789", 20) + "secret" + strings.Repeat("é", 50)
	for chunk := 1; chunk < 40; chunk += 7 {
		got := print(t, Limits{LineBytes: 16}, long+"\nnext\n", chunk, "secret", "23456")
		all := strings.Join(got[:len(got)-1], "")
		want := strings.ReplaceAll(strings.ReplaceAll(long, "secret", hidden), "23456", hidden)
		if all != want {
			t.Fatalf("chunks of %d:\n got %q\nwant %q", chunk, all, want)
		}
		if got[len(got)-1] != "next" {
			t.Fatalf("the line after it is %q", got[len(got)-1])
		}
		for _, l := range got {
			if len(l) > 16+3*len(hidden)+len("secret") {
				t.Errorf("a line of %d bytes: %q", len(l), l)
			}
		}
	}
}

func TestOutputLongCommand(t *testing.T) {
	secret := strings.Repeat("k", 300)
	got := print(t, Limits{LineBytes: 16}, "::add-mask::"+secret+"\nit is "+secret+"\n", 7)
	if strings.Contains(strings.Join(got, ""), "kkkk") || !strings.Contains(strings.Join(got, ""), hidden) {
		t.Errorf("%q", got)
	}
	u, sink := newTestUnit(t, Limits{})
	o := newOutput(u)
	fmt.Fprint(o, "::add-mask::")
	for range 3 << 10 {
		fmt.Fprint(o, strings.Repeat("s", 1<<10))
	}
	fmt.Fprint(o, "\nafter\n")
	if len(u.failures) != 1 || strings.Contains(strings.Join(*sink, ""), "ssss") {
		t.Errorf("failures %q, log %.200q", u.failures, *sink)
	}
	if last := (*sink)[len(*sink)-1]; last != "after" {
		t.Errorf("the line after it is %q", last)
	}
}

func TestTooManyMasks(t *testing.T) {
	var in strings.Builder
	for i := range 5 {
		fmt.Fprintf(&in, "::add-mask::value-%d\nseen value-%d\n", i, i)
	}
	got := print(t, Limits{Masks: 3}, in.String(), 100)
	want := []string{"seen ***", "seen ***", "seen ***", "##[error]There are too many values to mask: from here on, nothing is logged."}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestOutputAfterClose(t *testing.T) {
	u, sink := newTestUnit(t, Limits{})
	o := newOutput(u)
	fmt.Fprint(o, "a")
	o.Close()
	fmt.Fprint(o, "b\n")
	o.Close()
	if diff := cmp.Diff(lines{"a"}, *sink); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzOutput(f *testing.F) {
	f.Add("a\r\nb\n::error file=x::y\n::stop-commands::tok\n::error::z\n::tok::\n", uint8(3))
	f.Add("::add-mask::secret\nsecret\n##[add-mask]other\nother", uint8(1))
	f.Add(strings.Repeat("x", 100)+"secret"+strings.Repeat("\xff", 20), uint8(5))
	f.Add("::group::\n::save-state name=a::b\n::set-env name=a::b\n::echo::on\n::endgroup::", uint8(9))
	f.Fuzz(func(t *testing.T, text string, chunk uint8) {
		limits := Limits{LineBytes: 32}
		whole := print(t, limits, text, len(text)+1, "secret")
		if strings.Contains(strings.Join(whole, "\n"), "secret") {
			t.Fatalf("%q: %q", text, whole)
		}
		parts := print(t, limits, text, int(chunk)+1, "secret")
		// Where a long line is cut may differ, what it says may not.
		if a, b := strings.Join(whole, ""), strings.Join(parts, ""); a != b && !strings.Contains(a, hidden) && !strings.Contains(text, "\xff") &&
			strings.ToValidUTF8(text, "") == text {
			t.Fatalf("%q:\nwhole %q\nparts %q", text, whole, parts)
		}
		for _, l := range parts {
			if strings.ContainsAny(l, "\r\n") {
				t.Fatalf("%q: line %q", text, l)
			}
		}
	})
}
