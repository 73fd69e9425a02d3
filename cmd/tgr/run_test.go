package main

import (
	"runtime"
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
