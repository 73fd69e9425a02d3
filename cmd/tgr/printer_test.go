package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
)

// What a step is given is folded away; what it prints is not, even if it looks the same.
func TestPrinterFolds(t *testing.T) {
	lines := []struct {
		step int
		text string
	}{
		{1, "Runner name: 'x'"}, {1, "##[group]Machine"}, {1, "process"}, {1, "##[endgroup]"}, {1, "##[warning]odd"}, {1, "Complete job name: a"},
		{2, "##[group]Run make"}, {2, "make"}, {2, "shell: bash -e {0}"}, {2, "##[endgroup]"},
		{2, "##[group]Run tests"}, {2, "ok\x1b]0;title\x07"}, {2, "##[endgroup]"}, {2, "##[error]broken"},
		{3, "##[group]Run true"}, {3, "##[endgroup]"}, {4, "Post job cleanup."},
	}
	for _, tt := range []struct {
		wordy bool
		want  []string
	}{
		{false, []string{"  ▶ Set up job", "warning: odd", "Run tests", "ok]0;title ", "error: broken", "Post job cleanup."}},
		{true, []string{"  ▶ Set up job", "Runner name: 'x'", "Machine", "process", "warning: odd", "Complete job name: a", "Run make", "make", "shell: bash -e {0}", "Run tests", "ok]0;title ", "error: broken", "Run true", "Post job cleanup."}},
	} {
		var b bytes.Buffer
		p := newPrinter(&b, false, false)
		p.wordy = tt.wordy
		p.Steps(tgr.Job{ID: 1, Name: "a"}, []tgr.Step{{ID: "__setup", Name: "Set up job", Status: tgr.InProgress}})
		for _, l := range lines {
			p.Line(tgr.Job{ID: 1, Name: "a", Kind: tgr.WorkJob}, tgr.LogLine{Step: l.step, Text: l.text})
		}
		p.flush()
		got := strings.Split(strings.TrimSuffix(strings.ReplaceAll(b.String(), "    │ ", ""), "\n"), "\n")
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("wordy %v: -want +got:\n%s", tt.wordy, diff)
		}
	}
}

// Of the steps that every job has nothing is shown, unless there is something to see.
func TestPrinterLeavesOutRoutine(t *testing.T) {
	steps := func(c tgr.Conclusion) []tgr.Step {
		return []tgr.Step{{ID: "__setup", Name: "Set up job", Status: tgr.Completed, Conclusion: c}}
	}
	for _, tt := range []struct {
		end  []tgr.Step
		want string
	}{
		{steps(tgr.Success), ""},
		{steps(tgr.Failure), "  ▶ Set up job\n  ✗ Set up job 0.00 s\n"},
	} {
		var b bytes.Buffer
		p := newPrinter(&b, false, false)
		j := tgr.Job{ID: 1, Name: "a", Kind: tgr.WorkJob}
		p.Steps(j, []tgr.Step{{ID: "__setup", Name: "Set up job", Status: tgr.InProgress}})
		p.Line(j, tgr.LogLine{Step: 1, Text: "Prepare workflow directory"})
		p.Steps(j, tt.end)
		p.flush()
		if diff := cmp.Diff(tt.want, b.String()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

// A job that may fail is not told as one that made the run fail.
func TestPrinterForgives(t *testing.T) {
	var b bytes.Buffer
	p := newPrinter(&b, false, false)
	p.Job("CI", tgr.Job{ID: 1, Name: "a", Kind: tgr.WorkJob, Conclusion: tgr.Failure, ContinueOnError: true, Reason: "exit 1"})
	p.flush()
	if diff := cmp.Diff("✗ CI / a: failure (and may: continue-on-error): exit 1\n", b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPrinterSays(t *testing.T) {
	var b bytes.Buffer
	p := newPrinter(&b, false, false)
	p.many = true
	p.Boot(tgr.Job{Name: "a", Tries: 1}, false)
	p.Boot(tgr.Job{Name: "a", Tries: 2}, true)
	p.Steps(tgr.Job{ID: 1, Name: "a"}, []tgr.Step{{Name: strings.Repeat("é", 300), Status: tgr.InProgress}})
	p.end("the end\n")
	p.say("too late\n")
	p.flush()
	want := "[a]   … try 2, as the fault was ours\n[a]   … starting a machine\n[a]   ▶ " + strings.Repeat("é", maxName-1) + "…\nthe end\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// gone is a reader that has gone away.
type gone struct{}

func (gone) Write([]byte) (int, error) { return 0, errors.New("gone") }

// A line is written soon without anybody asking, and what cannot be written is known.
func TestPrinterFlushes(t *testing.T) {
	p := newPrinter(gone{}, false, false)
	p.say("word\n")
	select {
	case <-p.broken:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was written")
	}
	if p.flush(); p.err == nil {
		t.Error("the error is lost")
	}
}

// What lines cost here must not be what bounds a job that prints a lot.
func BenchmarkPrinter(b *testing.B) {
	var sink bytes.Buffer
	p := newPrinter(&sink, false, false)
	p.many = true
	l := tgr.LogLine{Step: 2, Text: "the quick brown fox jumps over the lazy dog and runs away from here again"}
	j := tgr.Job{ID: 1, Name: "a", Kind: tgr.WorkJob}
	b.SetBytes(int64(len(l.Text)))
	for b.Loop() {
		p.Line(j, l)
		sink.Reset()
	}
}
