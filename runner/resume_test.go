package runner_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/process"
)

// TestScenariosResumed runs every scenario with a server that is killed at a moment chosen by chance, of what it records,
// and of what it logs, and goes on with the job from what outlived it: the result and the log are those of a server that
// was not killed. TGR_KILLS is how often each is killed.
func TestScenariosResumed(t *testing.T) {
	kills, err := strconv.Atoi(cmp.Or(os.Getenv("TGR_KILLS"), "1"))
	if err != nil {
		t.Fatalf("TGR_KILLS: %v", err)
	}
	var all, resumed, spoilt atomic.Int64
	t.Run("all", func(t *testing.T) {
		eachScenario(t, func(t *testing.T, file string, a *txtar.Archive) {
			all.Add(1)
			if strings.Contains(string(a.Comment), "\ncancel ") || strings.HasPrefix(string(a.Comment), "cancel ") {
				t.Skip("what the test cancels is not resumed")
			}
			seed := fnv.New64a()
			seed.Write([]byte(file))
			random := rand.New(rand.NewPCG(seed.Sum64(), 1))
			for range kills {
				outcome := runKilled(t, a, random)
				switch {
				case outcome == errSpoilt:
					spoilt.Add(1)
				case outcome == nil:
					resumed.Add(1)
				}
			}
		})
	})
	t.Logf("%d jobs went on, %d could not", resumed.Load(), spoilt.Load())
	if resumed.Load() < all.Load()/3 {
		t.Errorf("only %d jobs of %d scenarios went on", resumed.Load(), all.Load())
	}
}

var errSpoilt = errors.New("spoilt")

// runKilled runs a scenario, kills it, and goes on with it.
func runKilled(t *testing.T, a *txtar.Archive, random *rand.Rand) error {
	m := newProcess(t)
	s := newScenarioOn(t, a, m.dial(t))
	k := &killer{sink: s.sink, entries: 1 + random.IntN(12), lines: -1, client: m.last}
	if random.IntN(2) == 0 {
		k.entries, k.lines = -1, random.IntN(40)
	}
	s.config.Tape, s.config.Sink = k, k
	res, err := runner.Run(s.ctx, s.config, s.job)
	if !k.dead() { // it was faster
		if diff := gocmp.Diff(string(find(a, "want")), s.show(res, err)); diff != "" {
			t.Errorf("with a tape: -want +got:\n%s", diff)
		}
		return errors.New("it was not killed")
	}
	rec, err := runner.ReadRecording(bytes.NewReader(k.tape.Bytes()))
	if errors.Is(err, runner.ErrSpoilt) {
		return errSpoilt
	} else if err != nil {
		t.Fatal(err)
	}
	// What was not flushed may be lost, or some of it.
	s.sink.lines = s.sink.lines[:k.flushed+random.IntN(len(s.sink.lines)-k.flushed+1)]
	s.config.Machine, s.config.Resume, s.config.Logged = m.dial(t), rec, len(s.sink.lines)
	after := &killer{sink: s.sink, entries: -1, lines: -1}
	after.tape.Write(k.tape.Bytes())
	s.config.Tape, s.config.Sink = after, after
	res, err = runner.Run(s.ctx, s.config, s.job)
	if diff := gocmp.Diff(string(find(a, "want")), s.show(res, err)); diff != "" {
		t.Errorf("killed after entry %d or line %d: -want +got:\n%s\ntape:\n%s", k.entries, k.lines, diff, k.tape.Bytes())
	}
	return nil
}

// killer is a server that is killed at some entry of its tape, or at some line of its log: its stream to the agent breaks,
// and nothing is written any more.
type killer struct {
	*sink
	entries, lines int // how many outlive it; -1: all
	client         *guest.Client

	mu      sync.Mutex
	tape    bytes.Buffer
	n       int
	flushed int
	killed  bool
}

func (k *killer) dead() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.killed
}

// kill is called with mu held.
func (k *killer) kill() {
	k.killed = true
	go k.client.Close() // it waits for calls whose output comes here
}

// Append implements runner.Tape.
func (k *killer) Append(line []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.n == k.entries && !k.killed {
		k.tape.Write(line[:len(line)/2]) // torn
		k.kill()
	}
	if k.killed {
		<-k.client.Done() // nothing is asked of the machine any more
		return nil
	}
	k.n++
	k.tape.Write(append(line, '\n'))
	return nil
}

// Line implements runner.Sink.
func (k *killer) Line(l tgr.LogLine) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.killed {
		return
	}
	k.sink.Line(l)
	if len(k.sink.lines) == k.lines {
		k.kill()
	}
}

// Flush implements runner.Flusher.
func (k *killer) Flush() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.killed {
		k.flushed = len(k.sink.lines)
	}
	return nil
}

// dialled is a machine whose agent can be dialled again.
type dialled struct {
	vm   vm.VM
	last *guest.Client
}

func newProcess(t testing.TB) *dialled {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m, err := process.New(process.Config{Agent: []string{program, "agent"}, Dir: t.TempDir()}).Start(context.WithoutCancel(t.Context()), vm.Spec{ID: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &dialled{vm: m}
}

func (d *dialled) dial(t testing.TB) *guest.Client {
	t.Helper()
	c, err := guest.Dial(context.WithoutCancel(t.Context()), d.vm.Dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	d.last = c
	return c
}
