package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

const tapeBegin = `{"op":"begin","at":"2026-01-02T03:04:05Z"}`

// newTape makes the tape of a job with these entries.
func newTape(t *testing.T, s *Tapes, job tgr.JobID, lines ...string) *tape {
	t.Helper()
	p := compile(t, "on: push\njobs: {a: {runs-on: x, steps: [{run: 'true'}]}}\n")
	h := tapeHead{Job: job, Lease: "lease", Machine: "m-" + job.String(), Port: "127.0.0.1:9",
		Runner: runner.Job{Plan: p, Job: &p.Jobs[0], Secrets: map[string]string{"A": "b"}, Instance: workflow.Instance{Name: "a"}}}
	tp, again, err := s.create(h)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(h.Runner.Job, again.Job); diff != "" {
		t.Errorf("the job is another one (-want +got):\n%s", diff)
	}
	for _, l := range lines {
		if err := tp.Append([]byte(l)); err != nil {
			t.Fatal(err)
		}
	}
	return tp
}

// TestResumable takes back the jobs whose tapes are good and whose leases are theirs, and removes the other tapes.
func TestResumable(t *testing.T) {
	s := &Tapes{Dir: t.TempDir()}
	newTape(t, s, 1, tapeBegin, `{"op":"put","key":"/x"}`).end(true)
	newTape(t, s, 2).end(true)                                                        // the server was killed at once
	newTape(t, s, 3, tapeBegin, `{"op":"spoilt","key":"it was cancelled"}`).end(true) //
	newTape(t, s, 4, tapeBegin).end(true)                                             // given to another server meanwhile
	newTape(t, s, 5, tapeBegin).end(false)                                            // it ended
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("6.tape", "no JSON\n")
	write("7.tape", `{"format":99,"job":7}`+"\n"+tapeBegin+"\n")
	write("8.tape", `{"format":1,"job":1}`+"\n"+tapeBegin+"\n")
	write("notes", "not ours")
	f, err := os.OpenFile(filepath.Join(s.Dir, "1.tape"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"op":"get","ke`) // torn
	f.Close()

	why := map[string]string{}
	retake := func(_ context.Context, job tgr.JobID, token string) (*Lease, error) {
		if job == 4 {
			return nil, errors.New("another's")
		}
		return &Lease{Job: tgr.Job{ID: job}, Token: token}, nil
	}
	got, err := s.Resumable(t.Context(), retake, func(job string, err error) { why[job] = err.Error() })
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Machine != "m-1" || got[0].Lease.Token != "lease" || got[0].head.Runner.Secrets["A"] != "b" {
		t.Fatalf("resumable: %+v", got)
	}
	for job, want := range map[string]string{"2": "it has no beginning", "3": "it was cancelled", "4": "another's", "6": "first line", "7": "of format 99", "8": "tape of job 1"} {
		if !strings.Contains(why[job], want) {
			t.Errorf("job %s: %q; want %q", job, why[job], want)
		}
	}
	list, err := os.ReadDir(s.Dir)
	if err != nil || len(list) != 2 {
		t.Errorf("left: %v, %v; want 1.tape and notes", list, err)
	}
	// What goes on begins behind the last whole line.
	tp, err := got[0].reopen()
	if err != nil {
		t.Fatal(err)
	}
	if err := tp.Append([]byte(`{"op":"put","key":"/y"}`)); err != nil {
		t.Fatal(err)
	}
	tp.end(true)
	b, err := os.ReadFile(filepath.Join(s.Dir, "1.tape"))
	if err != nil || !bytes.HasSuffix(b, []byte(tapeBegin+"\n"+`{"op":"put","key":"/x"}`+"\n"+`{"op":"put","key":"/y"}`+"\n")) {
		t.Errorf("the tape is %s, %v", b, err)
	}
}

// TestTape keeps secrets from others, ends where it is too long, and takes nothing down once it is frozen.
func TestTape(t *testing.T) {
	s := &Tapes{Dir: t.TempDir()}
	tp := newTape(t, s, 1, tapeBegin)
	if info, err := os.Stat(s.path(1)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	if !tp.freeze() {
		t.Error("the job could not go on")
	}
	before, _ := os.ReadFile(s.path(1))
	if err := tp.Append([]byte("late")); err != nil {
		t.Error(err)
	}
	if after, err := os.ReadFile(s.path(1)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("after it was frozen: %s, %v", after, err)
	}
	long := newTape(t, s, 2, tapeBegin)
	if err := long.Append(make([]byte, maxTape)); err == nil || long.freeze() {
		t.Errorf("a tape without an end: %v", err)
	}
	spoilt := newTape(t, s, 3, tapeBegin, `{"op":"spoilt","at":"2026-01-02T03:04:05Z","key":"steps run in the background"}`)
	if spoilt.freeze() {
		t.Error("a job whose tape is spoilt could go on")
	}
	for _, tp := range []*tape{tp, long, spoilt} {
		if err := errors.Join(tp.end(false), tp.end(false)); err != nil {
			t.Error(err)
		}
	}
	if list, err := os.ReadDir(s.Dir); err != nil || len(list) > 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if (*tape)(nil).freeze() || (*tape)(nil).end(true) != nil {
		t.Error("a job without a tape goes on")
	}
}

// FuzzReadTape reads any file as a tape: it is one, or an error.
func FuzzReadTape(f *testing.F) {
	f.Add([]byte(`{"format":1,"job":1,"lease":"x","machine":"m","runner":{}}` + "\n" + tapeBegin + "\n" + `{"op":"exec","id":"x"}` + "\n"))
	f.Add([]byte("{}\n{}"))
	f.Add([]byte("\n\n\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "1.tape")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readTape(path)
		if err == nil && (r.recording == nil || r.whole > int64(len(b))) {
			t.Errorf("%q is %+v", b, r)
		}
	})
}

// What is kept of a running job is not for messages.
func TestTapeHeadIsNotFormatted(t *testing.T) {
	h := tapeHead{Lease: "hunter2", ActionEnv: map[string]string{"A": "hunter2"}, Runner: runner.Job{Token: "hunter2"}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, h); got != "***" {
			t.Errorf("%s: %s", verb, got)
		}
	}
}
