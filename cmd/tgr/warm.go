package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// inMachine runs a script of ours in a machine that no job has seen.
func inMachine(script string) func(context.Context, vm.VM) error {
	return func(ctx context.Context, m vm.VM) error {
		conn, err := m.Dial(ctx)
		if err != nil {
			return err
		}
		return guest.Exercise(ctx, conn, guest.Cmd{Args: []string{"/bin/bash", "-c", script}, Env: []string{"PATH=" + imagePath}})
	}
}

// exercise is what a machine that will wait runs: code that is translated once is not translated again for its job,
// and no snapshot holds that.
const exercise = "bash -c true; sh -c true; git --version >/dev/null"

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
	mc.isolation, mc.pool, mc.cold, mc.mortal, mc.remote = "qemu", 0, false, true, remoteConfig{}
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
