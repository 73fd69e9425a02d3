package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// killedDir, in the environment, makes this program the server that TestKills kills: its machines are journalled there.
const killedDir = "TGR_TEST_KILLED_DIR"

// kills is how many servers, emulators and agents are killed: few, but TGR_KILLS says otherwise.
func kills() int {
	n, err := strconv.Atoi(os.Getenv("TGR_KILLS"))
	if err != nil || n < 1 {
		return 6
	}
	return n
}

// TestServerToKill is no test: it makes machines, uses them and frees them until it is killed.
func TestServerToKill(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("it is run by TestKills")
	}
	cfg := limited(t)
	cfg.Journal.Dir = dir
	p := warmed(t, cfg, vm.Spec{})
	fmt.Println("ready")
	var work sync.WaitGroup
	for worker := range 2 {
		work.Go(func() {
			for i := 0; ; i++ {
				useMachine(p, fmt.Sprintf("killed-%d-%d-%d", os.Getpid(), worker, i))
			}
		})
	}
	work.Wait()
}

// useMachine does what servers do with a machine. That it may fail at any point is what this is about; what may not
// fail is to free it.
func useMachine(p *qemu.Provider, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if rand.IntN(2) == 0 {
		p.Prestart(ctx, vm.Spec{})
	}
	m, err := p.Start(ctx, vm.Spec{ID: id})
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	defer func() {
		if err := m.Close(); err != nil {
			fmt.Println("NOT FREED:", err)
		}
	}()
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return
	}
	defer c.Close()
	c.Exec(ctx, guest.Cmd{Args: []string{"bash", "-c", "echo x > /root/x"}, Env: env()}, nil)
	switch rand.IntN(4) {
	case 0:
		c.Exec(ctx, guest.Cmd{Args: []string{"bash", "-c", "kill -QUIT 1; sleep 10"}, Env: env()}, nil) // the agent
		fmt.Println("killed an agent")
	case 1:
		if s, err := m.(vm.Snapshotter).Snapshot(ctx, ""); err == nil {
			m.(vm.Snapshotter).Rollback(ctx, s.ID)
		}
	}
}

// TestKills kills servers and emulators at random moments. After each server's end the next one's look at the journal
// leaves nothing: no process, no folder, no control group.
func TestKills(t *testing.T) {
	cfg := limited(t)
	warmed(t, cfg, vm.Spec{}) // so that no server is killed before it has machines
	for n, round := 0, 0; n < kills(); round++ {
		dir := filepath.Join(t.TempDir(), "machines")
		n += killSome(t, vm.Journal{Dir: dir})
		if t.Failed() {
			t.Fatalf("after %d kills", n)
		}
		t.Logf("round %d: %d kills", round, n)
	}
}

// killSome starts a server, kills some of its emulators and then it, and reaps what is left. It returns how many it has
// killed.
func killSome(t *testing.T, j vm.Journal) (n int) {
	t.Helper()
	server := exec.Command(os.Args[0], "-test.run=^TestServerToKill$", "-test.v")
	server.Env = append(os.Environ(), killedDir+"="+j.Dir)
	var said lockedBuffer
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	awaitText(t, &said, "ready")
	for range rand.IntN(4) {
		time.Sleep(rand.N(time.Second)) // any moment will do
		n += killEmulator(j)
	}
	time.Sleep(rand.N(time.Second))
	server.Process.Kill()
	<-ended
	n += 1 + strings.Count(said.String(), "killed an agent")
	if strings.Contains(said.String(), "NOT FREED") {
		t.Errorf("the server said:\n%s", said.String())
	}
	reaped, err := j.Reap(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	for _, r := range reaped {
		if r.Err != nil {
			t.Errorf("machine %s: %v", r.ID, r.Err)
		}
		for _, dir := range r.Cgroups {
			if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("machine %s: %s is left: %v", r.ID, dir, err)
			}
		}
	}
	nothingLeft(t, j)
	pattern := fmt.Sprintf("killed-%d-*", server.Process.Pid)
	left, _ := filepath.Glob("/sys/fs/cgroup/*/tgr/" + pattern)
	more, _ := filepath.Glob("/sys/fs/cgroup/tgr/" + pattern)
	for _, dir := range append(left, more...) {
		t.Errorf("%s is left", dir)
	}
	return n
}

// killEmulator kills one of the machines that are alive, and returns how many that were.
func killEmulator(j vm.Journal) int {
	entries, err := j.List()
	if err != nil {
		return 0
	}
	rand.Shuffle(len(entries), func(a, b int) { entries[a], entries[b] = entries[b], entries[a] })
	for _, e := range entries {
		for _, p := range e.Processes {
			if p.Kill() {
				return 1
			}
		}
	}
	return 0
}

func awaitText(t *testing.T, b *lockedBuffer, text string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(b.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in\n%s", text, b.String())
		}
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
