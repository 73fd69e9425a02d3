package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/terraphim/tgr/vm"
)

const (
	// probeMessage is guest.ProbeMessage, which a provider may not import.
	probeMessage = "tgr: probe ok"
	kvmTimeout   = 6 * time.Second // of a boot that takes a fraction of a second where KVM works
	verdictFile  = "kvm-verdict.json"
)

// Verdict says which accelerator machines use, and why.
type Verdict struct {
	KVM    bool   `json:"kvm"`
	Reason string `json:"reason"` // a sentence
	Key    string `json:"key"`    // of what the verdict holds for: the host's boot and QEMU's version
}

// String returns the accelerator's name and the reason.
func (v Verdict) String() string {
	if v.KVM {
		return "kvm: " + v.Reason
	}
	return "tcg: " + v.Reason
}

// Accelerator settles which accelerator machines use. That /dev/kvm exists, and even that it makes a virtual
// machine, does not mean that a guest boots, so with Auto and KVM a guest is booted; the verdict is kept for this
// boot of the host and this version of QEMU.
func (p *Provider) Accelerator(ctx context.Context) (Verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.accel.Reason != "" {
		return p.accel, nil
	}
	if p.cfg.Accel == TCG {
		p.accel = Verdict{Reason: "software emulation was chosen"}
		return p.accel, nil
	}
	binary, err := p.lookBinary()
	if err != nil {
		return Verdict{}, err
	}
	v, err := p.kvmVerdict(ctx, binary)
	if err != nil {
		return Verdict{}, &vm.InfraError{Op: "qemu: probe KVM", Err: err}
	}
	if p.cfg.Accel == KVM && !v.KVM {
		return v, &vm.InfraError{Op: "qemu", Err: fmt.Errorf("KVM was chosen and does not work: %s", v.Reason)}
	}
	p.accel = v
	return v, nil
}

func (p *Provider) kvmVerdict(ctx context.Context, binary string) (Verdict, error) {
	key, err := vm.VerdictKey(ctx, binary)
	if err != nil {
		return Verdict{}, err
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return Verdict{Reason: err.Error(), Key: key}, nil
	}
	kvm.Close()
	var v Verdict
	if vm.ReadVerdict(p.cfg.CacheDir, verdictFile, &v) && v.Key == key && v.Reason != "" {
		return v, nil
	}
	v = Verdict{Key: key}
	begin := time.Now()
	if err := p.probe(ctx, binary, true, kvmTimeout); err != nil {
		if ctx.Err() != nil {
			return v, context.Cause(ctx)
		}
		v.Reason = "/dev/kvm exists, but a guest does not boot with it: " + err.Error()
	} else {
		v.KVM, v.Reason = true, fmt.Sprintf("a guest booted in %v", time.Since(begin).Round(time.Millisecond))
	}
	return v, vm.WriteVerdict(p.cfg.CacheDir, verdictFile, v)
}

// Probe boots a guest without disks, as every machine would be, and returns how long that took until it had
// powered off again.
func (p *Provider) Probe(ctx context.Context) (time.Duration, error) {
	v, err := p.Accelerator(ctx)
	if err != nil {
		return 0, err
	}
	binary, err := p.lookBinary()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := p.probe(ctx, binary, v.KVM, p.cfg.BootTimeout); err != nil {
		return 0, &vm.InfraError{Op: "qemu: probe", Err: err}
	}
	return time.Since(begin), nil
}

// probe boots the kernel and the agent without disks; the agent says so on the console and powers off.
func (p *Provider) probe(ctx context.Context, binary string, kvm bool, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it did not boot within %v", timeout))
	defer cancel()
	a := args{ID: "probe", KVM: kvm, Image: p.cfg.Image, VCPUs: 1, Memory: 256 << 20, Root: os.Geteuid() == 0, Append: []string{"tgr.probe"}}
	if !kvm {
		a.TSC = p.tsc()
	}
	cmd := exec.CommandContext(ctx, binary, a.argv()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var console, stderr vm.Console
	cmd.Stdout, cmd.Stderr = &console, &stderr
	err := cmd.Run()
	switch {
	case strings.Contains(console.String(), probeMessage):
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		err = errors.New("it ended without a word from the guest")
	}
	if said := strings.TrimSpace(stderr.String()); said != "" {
		err = fmt.Errorf("%w: %s", err, firstLine(said))
	}
	return err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
