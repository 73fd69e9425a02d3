package firecracker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/terraphim/tgr/vm"
)

const (
	// probeMessage is guest.ProbeMessage, which a provider may not import.
	probeMessage = "tgr: probe ok"
	probeWithin  = 10 * time.Second // for a boot that takes a fraction of a second where it works
	verdictFile  = "firecracker-verdict.json"
)

// Verdict says whether a guest boots.
type Verdict struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason"` // a sentence
	Key    string `json:"key"`    // of what the verdict holds for: the host's boot and Firecracker's version
}

// Probe finds out whether guests boot on this host, by booting one that has no disks: that /dev/kvm exists, and even
// that it makes a virtual machine, does not mean that. The verdict is kept in the cache folder for this boot of the
// host and this version. The error is that of a probe that could not be made.
func (p *Provider) Probe(ctx context.Context) (Verdict, error) {
	key, err := p.verdictKey(ctx)
	if err != nil {
		return Verdict{}, &vm.InfraError{Op: "firecracker: probe", Err: err}
	}
	if v, ok := p.readVerdict(key); ok {
		return v, nil
	}
	v := Verdict{Key: key}
	begin := time.Now()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err == nil {
		kvm.Close()
		err = p.boots(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return v, context.Cause(ctx)
	case err != nil:
		v.Reason = "a guest does not boot: " + err.Error()
	default:
		v.OK, v.Reason = true, fmt.Sprintf("a guest booted in %v", time.Since(begin).Round(time.Millisecond))
	}
	if p.cfg.CacheDir == "" {
		return v, nil
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(p.cfg.CacheDir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(p.cfg.CacheDir, verdictFile), b, 0o600)
	}
	return v, err
}

// boots is an error where a guest does not say that it has booted.
func (p *Provider) boots(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeWithin, fmt.Errorf("it said nothing within %v", probeWithin))
	defer cancel()
	s := vm.Spec{ID: "probe-" + strings.ToLower(rand.Text()[:12]), VCPUs: 1, Memory: 256 << 20}
	m, err := p.start(ctx, s, plan{
		files: func(ctx context.Context, j *jail) error {
			return errors.Join(j.link(ctx, p.cfg.Image.Kernel, kernelFile), j.link(ctx, p.cfg.Image.Initrd, initrdFile))
		},
		run: func(ctx context.Context, c *Client) error {
			err := c.PutMachine(ctx, Machine{VCPUs: s.VCPUs, MemoryMiB: s.Memory >> 20})
			if err == nil {
				err = c.PutBoot(ctx, BootSource{Kernel: kernelFile, Initrd: initrdFile, Args: p.cmdline() + " tgr.probe"})
			}
			if err == nil {
				err = c.Boot(ctx)
			}
			return err
		},
		await: func(ctx context.Context, proc *process) error {
			select {
			case <-proc.exited:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		},
	})
	if err != nil {
		var boot *vm.BootError
		if errors.As(err, &boot) && lastLine(boot.Console) != "" {
			return fmt.Errorf("%w: %s", err, lastLine(boot.Console))
		}
		return err
	}
	if err := m.Close(); err != nil {
		return err
	}
	if said := m.console.String(); !strings.Contains(said, probeMessage) {
		return fmt.Errorf("it ended without the word of its agent: %s", lastLine(said))
	}
	return nil
}

func (p *Provider) verdictKey(ctx context.Context) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	version, err := exec.CommandContext(ctx, p.binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", p.binary, err)
	}
	line, _, _ := strings.Cut(string(version), "\n")
	return strings.TrimSpace(string(boot)) + " " + p.binary + " " + line, nil
}

func (p *Provider) readVerdict(key string) (Verdict, bool) {
	var v Verdict
	if p.cfg.CacheDir == "" {
		return v, false
	}
	b, err := os.ReadFile(filepath.Join(p.cfg.CacheDir, verdictFile))
	return v, err == nil && json.Unmarshal(b, &v) == nil && v.Key == key && v.Reason != ""
}
