package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// HostCPU is what the host says of its first processor, but for its speed of the moment: snapshots of a
// virtual machine that has it fit no other.
func HostCPU() (string, error) {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	var keep []string
	for line := range strings.Lines(first) {
		name, _, _ := strings.Cut(line, "\t")
		switch strings.TrimSpace(strings.TrimSuffix(name, ":")) {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "vmx flags":
			keep = append(keep, strings.TrimSpace(line))
		}
	}
	return strings.Join(keep, "\n"), nil
}

// LockFile waits for an exclusive lock on the file at path, which it makes. unlock lets it go; the file stays.
func LockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the lock %s, which another process holds: %w", path, context.Cause(ctx))
		case <-tick.C:
		}
	}
}
