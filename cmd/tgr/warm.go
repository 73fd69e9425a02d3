package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/vm"
)

// warmUp runs an image's script in a machine before its snapshot is taken.
func warmUp(script string) func(context.Context, vm.VM) error {
	return func(ctx context.Context, m vm.VM) error { return guest.WarmUp(ctx, m.Dial, shell(script)) }
}

// warmUpClosed is warmUp of machines whose streams do not outlive the snapshot.
func warmUpClosed(script string) func(context.Context, vm.VM) error {
	return func(ctx context.Context, m vm.VM) error {
		conn, err := m.Dial(ctx)
		if err != nil {
			return err
		}
		return guest.Exercise(ctx, conn, shell(script))
	}
}

func shell(script string) guest.Cmd {
	return guest.Cmd{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=" + imagePath}}
}

// exerciseUser is who jobs run as.
const exerciseUser = "runner"

// exercise runs, in a machine that will wait, what jobs run: code that is translated once is not translated again for
// its job, and no snapshot holds that. Twice, because the first time goes other ways.
func exercise(ctx context.Context, c *guest.Client) error {
	const onDisk = "/home/" + exerciseUser + "/work/_temp/exercise"
	dir := onDisk
	if scratch := c.Hello().Scratch; scratch != "" { // files of steps go there, those of the job to its disk
		dir = scratch + "/exercise"
	}
	script := "set -e\ncd /tmp\necho $0 > /dev/null\nif true; then git --version > /dev/null; fi\n" +
		"for node in /opt/node20/bin/node; do [ ! -x $node ] || $node -e 1; done\n"
	for range 2 {
		port, err := c.Listen(ctx, "127.0.0.1:0") // of the job's services
		if err != nil {
			return err
		}
		if err := port.Close(); err != nil {
			return err
		}
		var files bytes.Buffer
		w := tar.NewWriter(&files)
		if err := w.WriteHeader(&tar.Header{Name: "script.sh", Mode: 0o644, Size: int64(len(script)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := w.Write([]byte(script)); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		for _, dir := range []string{onDisk, dir} {
			if err := c.Put(ctx, dir, bytes.NewReader(files.Bytes())); err != nil {
				return err
			}
		}
		for _, cmd := range []guest.Cmd{
			{Args: []string{"bash", "--noprofile", "--norc", "-eo", "pipefail", dir + "/script.sh"}, User: exerciseUser},
			{Args: []string{"bash", "-e", dir + "/script.sh"}, User: exerciseUser},
			{Args: []string{"sh", "-e", "-c", "rm -rf " + dir + " " + onDisk}},
		} {
			cmd.Env = []string{"PATH=" + imagePath, "HOME=/home/" + exerciseUser, "SHELL=/bin/bash"}
			exit, err := c.Exec(ctx, cmd, io.Discard)
			if err != nil || !exit.Success() {
				return errors.Join(fmt.Errorf("%q: status %d %s", cmd.Args, exit.Code, exit.Message), err)
			}
			if cmd.Args[0] == "bash" {
				if err := fetch(ctx, c, dir); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func fetch(ctx context.Context, c *guest.Client, dir string) error {
	r, err := c.Get(ctx, dir)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
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
	mc.isolation, mc.contained, mc.pool, mc.cold, mc.mortal, mc.remote = "qemu", nil, 0, false, true, remoteConfig{}
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
