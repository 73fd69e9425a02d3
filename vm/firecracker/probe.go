package firecracker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
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
	key, err := vm.VerdictKey(ctx, p.binary)
	if err != nil {
		return Verdict{}, &vm.InfraError{Op: "firecracker: probe", Err: err}
	}
	var v Verdict
	if vm.ReadVerdict(p.cfg.CacheDir, verdictFile, &v) && v.Key == key && v.Reason != "" {
		return v, nil
	}
	v = Verdict{Key: key}
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
	return v, vm.WriteVerdict(p.cfg.CacheDir, verdictFile, v)
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
