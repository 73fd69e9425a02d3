package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// VerdictKey is what a verdict on whether guests boot holds for: this boot of the host, and this version of the monitor.
func VerdictKey(ctx context.Context, binary string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	version, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", binary, err)
	}
	line, _, _ := strings.Cut(string(version), "\n")
	return strings.TrimSpace(string(boot)) + " " + binary + " " + line, nil
}

// ReadVerdict reads into v what WriteVerdict has kept as name in a cache folder, and reports whether there was something.
// Of an empty dir there is nothing.
func ReadVerdict(dir, name string, v any) bool {
	if dir == "" {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	return err == nil && json.Unmarshal(b, v) == nil
}

// WriteVerdict keeps v as name in a cache folder, which is made if it is not there; "" keeps nothing. Whoever reads it at the same
// time sees this or what was there before.
func WriteVerdict(dir, name string, v any) error {
	if dir == "" {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
