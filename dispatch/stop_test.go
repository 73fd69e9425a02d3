package dispatch

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr"
)

// hung is a source whose server says nothing.
type hung struct{ files }

func (hung) Fetch(ctx context.Context, ev tgr.Event) (tgr.Event, error) {
	<-ctx.Done()
	return ev, tgr.Errorf("source.fetch", tgr.NotFound, "git ended: signal: killed")
}

// A server that hangs holds a planner no longer than it may; whatever git's last words are, it is not the sender's fault.
func TestHungSource(t *testing.T) {
	h := open(t, nil, nil, func(c *Config) { c.Source, c.Plan = hung{}, 50*time.Millisecond })
	runs, jobs := h.push(nil)
	j := jobs[runs[0].ID][0]
	if j.Conclusion != tgr.Failure || j.Blame != tgr.BlameOurs || j.Tries != maxTries || !strings.Contains(j.Reason, "a/b could not be read within 50ms") {
		t.Errorf("the plan job: %s, blame %s, %d tries: %s", j.Conclusion, j.Blame, j.Tries, j.Reason)
	}
}

const sleeper = "on: push\njobs:\n  a: {runs-on: x, steps: [{run: 'echo begun; sleep 100'}]}\n"

// A job that is cancelled hears of it at once, and not with the next beat.
func TestCancelledAtOnce(t *testing.T) {
	h := open(t, files{"ci.yml": sleeper}, nil, func(c *Config) { c.Lease = time.Hour }) // a beat every 2 s
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("begun") })
	// Not when a beat is due: one has just been, or will be soon.
	took := time.Duration(1 << 62)
	start := time.Now()
	h.memory.Cancel("cancelled by ada")
	if err := h.d.Settle(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	h.await(func(runs []tgr.Run, jobs map[tgr.RunID][]tgr.Job) bool {
		if h.log.has("ancel") {
			took = min(took, time.Since(start))
		}
		return runs[0].Status.Done()
	})
	if took > 1500*time.Millisecond {
		t.Errorf("the job heard of it after %s", took)
	}
}

// A server that is stopped and started again, over and over, does not use up a job's tries.
func TestStopsDoNotCount(t *testing.T) {
	memory := &Memory{}
	for i := range maxTries + 2 {
		h := open(t, files{"ci.yml": sleeper}, nil, func(c *Config) { c.Jobs, c.Runs = memory, memory })
		if i == 0 {
			memory.Accept(tgr.Event{Name: "push", Ref: "refs/heads/main", SHA: strings.Repeat("a", 40), Repo: tgr.Repo{FullName: "a/b"}, Payload: []byte(`{}`)})
		}
		h.memory = memory
		h.d.Wake()
		h.await(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool { return h.log.has("begun") })
		h.stop()
		_, jobs := memory.All()
		j := jobs[1][len(jobs[1])-1]
		if j.Status != tgr.Queued || j.Tries != i+1 || !strings.Contains(j.Reason, "the server was stopped") {
			t.Fatalf("after stop %d: %s, %d tries, %q", i+1, j.Status, j.Tries, j.Reason)
		}
	}
}

// The pokes of one run are not those of another, and whoever has ended is forgotten.
func TestPokes(t *testing.T) {
	var p pokes
	one, endOne := p.add(1)
	two, endTwo := p.add(2)
	p.poke(1)
	p.poke(1)
	select {
	case <-one:
	default:
		t.Error("run 1 was not poked")
	}
	select {
	case <-two:
		t.Error("run 2 was poked")
	case <-one:
		t.Error("run 1 was poked twice")
	default:
	}
	endOne()
	endTwo()
	if p.poke(1); len(p.runs) != 0 {
		t.Errorf("left: %v", p.runs)
	}
}

// starved has no machine for anybody.
type starved chan struct{}

func (s starved) Acquire(ctx context.Context, _ Spec) (*Machine, func(), error) {
	close(s)
	<-ctx.Done()
	return nil, nil, ctx.Err()
}

// A job that is cancelled before it has a machine has the reason that it would have with one.
func TestCancelledBeforeItsMachine(t *testing.T) {
	asked := make(starved)
	h := open(t, files{"ci.yml": sleeper}, nil, func(c *Config) { c.Machines = asked })
	h.push(func([]tgr.Run, map[tgr.RunID][]tgr.Job) bool {
		select {
		case <-asked:
			return true
		default:
			return false
		}
	})
	h.memory.Cancel("superseded by run 2")
	if err := h.d.Settle(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_, jobs := h.await(nil)
	if j := jobs[1][len(jobs[1])-1]; j.Conclusion != tgr.Cancelled || j.Reason != "superseded by run 2" {
		t.Errorf("%s: %q", j.Conclusion, j.Reason)
	}
}
