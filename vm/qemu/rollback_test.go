package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// changing prepares files on the disk and in memory, and processes that remember and count.
const changing = `
echo first > /root/file; mkdir -p /root/dir; echo kept > /root/dir/kept
echo first > /dev/shm/file
nohup bash -c 'word=first; echo $BASHPID > /run/remembers; trap "echo \$word > /run/answer" USR1; trap "word=second" USR2; while :; do sleep 0.05; done' >/dev/null 2>&1 &
nohup sleep 100000 >/dev/null 2>&1 & echo $! > /run/sleeper
while [ ! -s /run/remembers ]; do sleep 0.05; done
`

// change changes all of it, and makes more.
const change = `
echo second > /root/file; rm -r /root/dir; echo new > /root/new
echo second > /dev/shm/file; head -c 3000000 /dev/urandom > /dev/shm/more
kill -USR2 $(cat /run/remembers); kill $(cat /run/sleeper)
nohup sleep 99999 >/dev/null 2>&1 &
sync
`

// look tells what is there.
const look = `
cat /root/file /root/dir/kept /root/new /dev/shm/file 2>&1 | sed 's/^cat: //'
ls /dev/shm
rm -f /run/answer; kill -USR1 $(cat /run/remembers); while [ ! -s /run/answer ]; do sleep 0.05; done; cat /run/answer
kill -0 $(cat /run/sleeper) && echo sleeps
ps -eo args | grep -c '^sleep 99999' || true
`

const lookedLikeThis = "first\nkept\n/root/new: No such file or directory\nfirst\nfile\nfirst\nsleeps\n0"

// TestRollback brings machines back: files, memory and processes are what they were, also what a process remembers.
func TestRollback(t *testing.T) {
	cold := config(t)
	warm, _ := warmConfig(t)
	for name, start := range map[string]func(t *testing.T) (vm.VM, *guest.Client, vm.Journal){
		"booted": func(t *testing.T) (vm.VM, *guest.Client, vm.Journal) {
			m, c := start(t, provider(t, cold), "rollback-booted")
			return m, c, cold.Journal
		},
		"restored": func(t *testing.T) (vm.VM, *guest.Client, vm.Journal) {
			m, c := start(t, warmed(t, warm, vm.Spec{}), "rollback-restored")
			return m, c, warm.Journal
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, c, journal := start(t)
			rollBack(t, m, c)
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			nothingLeft(t, journal)
		})
	}
}

func rollBack(t *testing.T, m vm.VM, c *guest.Client) {
	s, ok := m.(vm.Snapshotter)
	if !ok {
		t.Fatal("it cannot be brought back")
	}
	run(t, c, changing)
	if got := run(t, c, look); got != lookedLikeThis {
		t.Fatalf("before: %q", got)
	}
	running := startCounting(t, c)
	first, err := s.Snapshot(t.Context(), "before the change")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("stood still for %v, %d MB", first.Paused, first.Bytes>>20)
	boot := run(t, c, "cat /proc/sys/kernel/random/boot_id") // the stream is the same
	pid := m.(vm.Infoer).Info().PID
	for round := range 2 {
		run(t, c, change)
		if got := run(t, c, look+"true"); got == lookedLikeThis {
			t.Fatal("nothing has changed")
		}
		c.Close()
		if err := s.Rollback(t.Context(), first.ID); err != nil {
			t.Fatal(err)
		}
		c = connect(t, m)
		if err := c.Prepare(t.Context(), guest.Identity{Time: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if got := run(t, c, look); got != lookedLikeThis {
			t.Errorf("round %d: %q, want %q", round, got, lookedLikeThis)
		}
		if got := run(t, c, "cat /proc/sys/kernel/random/boot_id"); got != boot {
			t.Errorf("it has booted: %s, was %s", got, boot)
		}
	}
	if now := m.(vm.Infoer).Info().PID; now == pid {
		t.Errorf("the process is still %d", pid)
	}
	checkCounting(t, c, running)
	if got := s.Snapshots(); len(got) != 1 || got[0].ID != first.ID || got[0].Name != "before the change" || got[0].Bytes == 0 {
		t.Errorf("snapshots: %+v", got)
	}
	if err := s.Rollback(t.Context(), "s99"); !errors.Is(err, vm.ErrNoSnapshot) {
		t.Errorf("no such snapshot: %v", err)
	}
	if got := run(t, c, "echo still here"); got != "still here" {
		t.Errorf("got %q", got)
	}
}

// startCounting starts a process that the agent knows of.
func startCounting(t *testing.T, c *guest.Client) string {
	t.Helper()
	id, err := c.Start(t.Context(), guest.Cmd{Args: []string{"bash", "-c", "for ((i=1; i<=5; i++)); do echo $i; sleep 1; done"}, Env: env()})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// checkCounting attaches to the process, which goes on from where it was in the snapshot.
func checkCounting(t *testing.T, c *guest.Client, id string) {
	t.Helper()
	var out bytes.Buffer
	exit, err := c.Attach(t.Context(), guest.Attachment{ID: id, Out: &out})
	if err != nil || !exit.Success() || out.String() != "1\n2\n3\n4\n5\n" {
		t.Errorf("%q, %+v, %v", out.String(), exit, err)
	}
}

// TestSnapshotsAreFew keeps the last three, and what a machine that has ended says.
func TestSnapshotsAreFew(t *testing.T) {
	cfg, _ := warmConfig(t)
	m, c := start(t, warmed(t, cfg, vm.Spec{}), "few")
	s := m.(vm.Snapshotter)
	for i := range 5 {
		run(t, c, fmt.Sprintf("echo %d > /root/n", i))
		if _, err := s.Snapshot(t.Context(), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for _, s := range s.Snapshots() {
		names = append(names, s.Name)
	}
	if strings.Join(names, " ") != "2 3 4" {
		t.Errorf("kept: %v", names)
	}
	list, err := os.ReadDir(cfg.Journal.Dir + "/few/snapshots")
	if err != nil || len(list) != 3 {
		t.Errorf("%d folders, %v", len(list), err)
	}
	c.Close()
	if err := s.Rollback(t.Context(), s.Snapshots()[1].ID); err != nil {
		t.Fatal(err)
	}
	c = connect(t, m)
	if got := run(t, c, "cat /root/n"); got != "3" {
		t.Errorf("got %q", got)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Snapshot(ended, "late"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Wait(t.Context()); err != nil {
		t.Errorf("closed: %v", err)
	}
	if _, err := s.Snapshot(t.Context(), "closed"); err == nil {
		t.Error("a machine that was closed has a snapshot")
	}
	if err := s.Rollback(t.Context(), s.Snapshots()[0].ID); err == nil {
		t.Error("a machine that was closed was brought back")
	}
	nothingLeft(t, cfg.Journal)
}
