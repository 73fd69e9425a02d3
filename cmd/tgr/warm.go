package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/qemu"
)

// warmProvider is a provider that, once a snapshot has been taken, has restored machines wait in a pool.
type warmProvider struct {
	*qemu.Provider
	pool atomic.Pointer[vm.Pool]
	stop context.CancelFunc
	done sync.WaitGroup
}

// Start implements vm.Provider.
func (w *warmProvider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	if pool := w.pool.Load(); pool != nil {
		return pool.Start(ctx, s)
	}
	return w.Provider.Start(ctx, s)
}

// keep takes the snapshot, if there is none yet, and then opens the pool. Until then machines are booted.
func (w *warmProvider) keep(ctx context.Context, c machineConfig, log *slog.Logger) {
	ctx, w.stop = context.WithCancel(ctx)
	w.done.Go(func() {
		began := time.Now()
		if err := w.Warm(ctx, c.size); err != nil {
			if ctx.Err() == nil {
				log.Warn("machines are booted, not restored: there is no snapshot", "error", err)
			}
			return
		}
		log.Info("machines are restored from a snapshot from now on", "took", time.Since(began))
		pool, err := vm.NewPool(vm.PoolConfig{Provider: w.Provider, Size: c.size, Greet: exercise, Budget: c.pool, Log: log})
		if err != nil {
			log.Error("the pool of machines", "error", err)
			return
		}
		w.pool.Store(pool)
	})
}

// Close frees the machines that wait.
func (w *warmProvider) Close() error {
	if w.stop == nil {
		return nil
	}
	w.stop()
	w.done.Wait()
	if pool := w.pool.Load(); pool != nil {
		return pool.Close()
	}
	return nil
}

// warmUp runs in a machine, before its snapshot is taken, what jobs run first.
func warmUp(ctx context.Context, m vm.VM) error { return inMachine(ctx, m, image.Warmup) }

// exercise has a machine that will wait translate the code that jobs run first: that is not in a snapshot.
func exercise(ctx context.Context, m vm.VM) error {
	return inMachine(ctx, m, "bash -c true; sh -c true; git --version >/dev/null")
}

// inMachine runs a script of ours in a machine that no job has seen.
func inMachine(ctx context.Context, m vm.VM, script string) error {
	conn, err := m.Dial(ctx)
	if err != nil {
		return err
	}
	client, err := guest.Connect(ctx, conn)
	if err != nil {
		conn.Close()
		return err
	}
	var out strings.Builder
	exit, err := client.Exec(ctx, guest.Cmd{Args: []string{"/bin/bash", "-c", script}, Env: []string{"PATH=" + imagePath}}, &out)
	if err == nil && !exit.Success() {
		err = fmt.Errorf("the machine's own script ended with status %d %s: %s", exit.Code, exit.Message, out.String())
	}
	return errors.Join(err, client.Close())
}

// takeSnapshot makes the snapshot that machines of the configured size are restored from, unless there is one.
func takeSnapshot(ctx context.Context) error {
	c, err := loadConfig(newConfigCmd().Flags())
	if err != nil {
		return err
	}
	mc, err := machinesOf(c)
	if err != nil {
		return err
	}
	mc.isolation, mc.pool, mc.mortal = "qemu", 0, true
	if mc.dir, err = os.MkdirTemp("", "tgr-"); err != nil {
		return err
	}
	defer os.RemoveAll(mc.dir)
	m, err := openMachines(ctx, mc, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return errors.Join(m.warm(ctx), m.Close())
}
