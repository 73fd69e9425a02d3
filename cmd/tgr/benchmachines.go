package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// bashTrue is the smallest thing that a job does, with what a bash would otherwise look up.
func bashTrue() guest.Cmd {
	return guest.Cmd{Args: []string{"bash", "-c", "true"}, Env: []string{"PATH=" + imagePath, "HOME=/root", "SHELL=/bin/bash"}}
}

// execTimed runs a command, which must succeed.
func execTimed(ctx context.Context, c *guest.Client, cmd guest.Cmd) (time.Duration, error) {
	began := time.Now()
	exit, err := c.Exec(ctx, cmd, io.Discard)
	if err == nil && !exit.Success() {
		err = fmt.Errorf("%q: status %d %s", cmd.Args, exit.Code, exit.Message)
	}
	return time.Since(began), err
}

// clones restores machines one after another, up to their first command, without and with an emulator that waits for them.
func (b *benchVM) clones(ctx context.Context) error {
	for i := range b.n {
		if err := b.clone(ctx, i == 0); err != nil {
			return err
		}
	}
	for range b.n {
		if err := b.spared(ctx); err != nil {
			return err
		}
	}
	return nil
}

// spared restores a machine in an emulator that was started before, as the machines of a server are.
func (b *benchVM) spared(ctx context.Context) error {
	if err := b.provider.Prestart(ctx, b.size); err != nil {
		return err
	}
	began := time.Now()
	m, err := b.start(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return err
	}
	defer c.Close()
	b.took("restored, emulator waiting: agent answered", time.Since(began))
	if err := c.Prepare(ctx, benchIdentity()); err != nil {
		return err
	}
	if _, err := execTimed(ctx, c, bashTrue()); err != nil {
		return err
	}
	b.took("restored, emulator waiting: first bash -c true ended", time.Since(began))
	return nil
}

func benchIdentity() guest.Identity {
	return guest.Identity{Hostname: "bench", Time: time.Now(), Entropy: []byte(rand.Text() + rand.Text())}
}

func (b *benchVM) clone(ctx context.Context, files bool) error {
	began := time.Now()
	m, err := b.start(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	started := time.Now()
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return err
	}
	defer c.Close()
	greeted := time.Now()
	b.took("restored: agent answered", greeted.Sub(began))
	if i, ok := m.(vm.Infoer); ok {
		for _, p := range i.Info().Phases {
			b.took("  "+p.Name, p.Took)
		}
	}
	b.took("  greet the agent", greeted.Sub(started))
	b.worked("  processor time of all that", m, 0)
	if err := c.Prepare(ctx, benchIdentity()); err != nil {
		return err
	}
	prepared := time.Now()
	first, err := execTimed(ctx, c, bashTrue())
	if err != nil {
		return err
	}
	b.took("restored: first bash -c true ended", time.Since(began))
	b.took("  prepare: entropy, clock, ids", prepared.Sub(greeted))
	b.took("  bash itself", first)
	before := b.worked("  processor time since the start", m, 0)
	second, err := execTimed(ctx, c, bashTrue())
	if err != nil {
		return err
	}
	b.took("a second bash -c true", second)
	b.worked("  processor time of it", m, before)
	for range 10 { // the agent answers without a process: what is measured is the way
		began := time.Now()
		if _, err := c.Exec(ctx, guest.Cmd{Args: []string{"/nonexistent"}}, nil); err != nil {
			return err
		}
		b.took("exec round trip", time.Since(began))
	}
	if files {
		return b.files(ctx, c)
	}
	return nil
}

// worked notes how long the machine's processor has run since it had run for before, and returns how long that is in
// all: what a figure would be if nothing else ran on the host.
func (b *benchVM) worked(name string, m vm.VM, before time.Duration) time.Duration {
	i, ok := m.(vm.Infoer)
	if !ok {
		return 0
	}
	used, err := vm.CPUTime(i.Info().PID)
	if err == nil {
		b.took(name, used-before)
	}
	return used
}

// files moves 32 MB in and out, into and from the machine's memory.
func (b *benchVM) files(ctx context.Context, c *guest.Client) error {
	const size, dir = 32 << 20, "/dev/shm/bench"
	data := make([]byte, size)
	rand.Read(data)
	var packed bytes.Buffer
	w := tar.NewWriter(&packed)
	err := w.WriteHeader(&tar.Header{Name: "data", Mode: 0o644, Size: size, Format: tar.FormatPAX})
	if err == nil {
		_, err = w.Write(data)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	rate := func(name string, began time.Time) {
		f := b.figureOf(name, "MB/s")
		f.Samples = append(f.Samples, size/1e6/time.Since(began).Seconds())
	}
	for range max(3, b.n/4) {
		began := time.Now()
		if err := c.Put(ctx, dir, bytes.NewReader(packed.Bytes())); err != nil {
			return err
		}
		rate("put", began)
		began = time.Now()
		r, err := c.Get(ctx, dir)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil || n < size {
			return fmt.Errorf("got %d bytes back: %w", n, err)
		}
		rate("get", began)
	}
	return nil
}

// eight restores eight machines at once.
func (b *benchVM) eight(ctx context.Context) error {
	for range max(1, b.n/2) {
		began := time.Now()
		machines := make([]vm.VM, 8)
		errs := make([]error, len(machines))
		b.made++
		var work sync.WaitGroup
		for i := range machines {
			id := fmt.Sprintf("bench-%d-%d", b.made, i)
			work.Go(func() { machines[i], errs[i] = b.answered(ctx, id) })
		}
		work.Wait()
		b.took("8 restored at once: all agents answered", time.Since(began))
		err := errors.Join(errs...)
		for _, m := range machines {
			if m == nil {
				continue
			}
			pss, perr := proportionalSet(m)
			err = errors.Join(err, perr)
			f := b.figureOf("idle clone of 256 MiB, one of 8: proportional set", "MB")
			f.Samples = append(f.Samples, pss)
		}
		for _, m := range machines {
			if m != nil {
				err = errors.Join(err, m.Close())
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// answered restores a machine whose agent answers once.
func (b *benchVM) answered(ctx context.Context, id string) (vm.VM, error) {
	s := b.size
	s.ID = id
	m, err := b.provider.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	c, err := guest.Dial(ctx, m.Dial)
	if err == nil {
		err = c.Close()
	}
	return m, err
}

// proportionalSet is the machine's part of the host's memory, in MB.
func proportionalSet(m vm.VM) (float64, error) {
	i, ok := m.(vm.Infoer)
	if !ok {
		return 0, errors.New("the machine does not say which process it is")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", i.Info().PID))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kib); err == nil {
			return kib * 1024 / 1e6, nil
		}
	}
	return 0, errors.New("no proportional set in smaps_rollup")
}

// pool takes machines that waited.
func (b *benchVM) pool(ctx context.Context) error {
	log := slog.New(slog.DiscardHandler)
	greeter := &dispatch.Greeter{Exercise: exercise}
	pool, err := vm.NewPool(vm.PoolConfig{Provider: b.provider, Size: b.size, Greet: greeter.Greet, Budget: b.size.Memory, Log: log})
	if err != nil {
		return err
	}
	local := &dispatch.Local{Provider: pool, Size: b.size, Place: imagePlace, Greeter: greeter, Log: log}
	for range b.n {
		if err = b.pooled(ctx, pool, local); err != nil {
			break
		}
	}
	return errors.Join(err, pool.Close())
}

func (b *benchVM) pooled(ctx context.Context, pool *vm.Pool, local *dispatch.Local) error {
	for tick := time.Tick(5 * time.Millisecond); pool.Idle() == 0; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
		}
	}
	b.made++
	began := time.Now()
	m, release, err := local.Acquire(ctx, dispatch.Spec{ID: fmt.Sprintf("bench-%d", b.made)})
	if err != nil {
		return err
	}
	defer release()
	b.took("acquired from the pool, prepared", time.Since(began))
	for _, cmd := range []struct {
		name string
		args []string
	}{{"pooled: first bash -c true", []string{"bash", "-c", "true"}}, {"pooled: first node -e 1", []string{"/opt/node20/bin/node", "-e", "1"}}} {
		began := time.Now()
		exit, err := m.Exec(ctx, guest.Cmd{Args: cmd.args, Env: []string{"PATH=" + imagePath}, User: exerciseUser}, io.Discard)
		if err != nil || !exit.Success() {
			return errors.Join(fmt.Errorf("%q: status %d %s", cmd.args, exit.Code, exit.Message), err)
		}
		b.took(cmd.name, time.Since(began))
	}
	return nil
}

// snapshots keeps a running machine again and again, and brings it back.
func (b *benchVM) snapshots(ctx context.Context) error {
	m, err := b.start(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	s, ok := m.(vm.Snapshotter)
	if !ok {
		return nil // there is nothing to measure
	}
	for i := range b.n {
		c, err := guest.Dial(ctx, m.Dial)
		if err != nil {
			return err
		}
		if _, err := execTimed(ctx, c, bashTrue()); err != nil {
			return errors.Join(err, c.Close())
		}
		began := time.Now()
		snap, err := s.Snapshot(ctx, fmt.Sprintf("round %d", i))
		if err != nil {
			return errors.Join(err, c.Close())
		}
		b.took("snapshot of a running machine", time.Since(began))
		b.took("  the machine stood still", snap.Paused)
		f := b.figureOf("  it takes on the host", "MB")
		f.Samples = append(f.Samples, float64(snap.Bytes)/1e6)
		c.Close()
		began = time.Now()
		if err := s.Rollback(ctx, snap.ID); err != nil {
			return err
		}
		if c, err = guest.Dial(ctx, m.Dial); err != nil {
			return err
		}
		b.took("rollback, agent answered", time.Since(began))
		c.Close()
	}
	return nil
}

// tenWorkflow has ten jobs, each of which has to find itself alone in its machine.
const tenWorkflow = `name: ten
on: push
jobs:
  ten:
    runs-on: ubuntu-latest
    strategy:
      matrix:
        n: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    steps:
      - run: echo ${{ matrix.n }} > /tmp/mine
      - run: test "$(cat /tmp/mine)" = ${{ matrix.n }}
`

// tenJobs runs ten jobs at once, each in a machine of its own.
func (b *benchVM) tenJobs(ctx context.Context) error {
	repo := filepath.Join(b.dir, "ten")
	if err := os.MkdirAll(filepath.Join(repo, workflowDir), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(repo, workflowDir, "ten.yml"), []byte(tenWorkflow), 0o644); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for range max(1, b.n/10) {
		began := time.Now()
		cmd := exec.CommandContext(ctx, self, "run", "-q", "-C", repo, "--isolation", "qemu", "--parallel", "10")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ten jobs at once: %w:\n%s", err, out)
		}
		b.took("10 jobs at once ended correctly", time.Since(began))
	}
	return nil
}
