package main

import (
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
)

// busy is an output that others get ahead of.
type busy struct{}

func (busy) Write(b []byte) (int, error) {
	runtime.Gosched()
	return len(b), nil
}

// Workers whose jobs end at the same time find at the same time that all is done: it is said once.
func TestRunEndsOnce(t *testing.T) {
	m := &dispatch.Memory{}
	m.Accept(tgr.Event{Name: "push"})
	lease, err := m.Claim(t.Context(), dispatch.Claim{Owner: "w", Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Finish(t.Context(), lease.Job.ID, lease.Token, dispatch.JobResult{Conclusion: tgr.Failure}); err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		l := &localRun{out: newPrinter(busy{}, false, false), memory: m, done: make(chan struct{})}
		var workers sync.WaitGroup
		for range 4 {
			workers.Go(func() { l.settled(lease.Run.ID) })
		}
		workers.Wait()
		<-l.done
	}
}

// Nobody but the command itself takes the snapshot that its machines are restored from.
func TestRunRestores(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: no virtual machines")
	}
	dir := repoWith(t, "on: push\njobs:\n  a: {runs-on: ubuntu-latest, steps: [{run: 'echo $USER by $SHELL'}]}\n")
	cmd := exec.Command("tgr", "run", "-v", "-C", dir, "--isolation", "qemu")
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "image not built") {
		t.Skip("SKIPPED: VIRTUAL MACHINES ARE NOT TESTED: there is no image")
	}
	if err != nil || !strings.Contains(string(out), `msg="machine restored" vm=first-`) || !strings.Contains(string(out), "│ runner by /bin/bash") {
		t.Errorf("%v, want a machine that was restored, and runner by /bin/bash in it:\n%s", err, out)
	}
}
