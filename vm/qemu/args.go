package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// Names inside a machine's folder, which is QEMU's working folder: relative, because a unix socket's path has at
// most 107 bytes.
const (
	overlayFile = "overlay.ext4"
	qmpSocket   = "qmp"
	agentSocket = "agent"
)

// The descriptors that QEMU inherits: the listening sockets and, for a machine that makes or is restored from a
// snapshot, its memory and the state of its devices.
const (
	qmpFD   = 3
	agentFD = 4
	ramFD   = 5
	stateFD = 6
)

// backing is where a machine's memory is.
type backing int

const (
	anonymous backing = iota // it is the machine's own
	shared                   // in the file ramFD: a snapshot of the machine can be taken
	private                  // a copy on write of the file ramFD: the machine is restored from a snapshot
)

// tapFD is the descriptor of the tap device: the first one behind those above that there are.
func (a args) tapFD() int {
	switch {
	case a.Incoming:
		return stateFD + 1
	case a.Backing != anonymous:
		return ramFD + 1
	}
	return ramFD
}

// slotNet is args.Network for a machine in a network slot.
const slotNet = "slot"

const nobody = "65534:65534" // user and group that own nothing

const portID = "agent" // QEMU's name for the agent's port, in events

// args is everything that a command line depends on.
type args struct {
	ID      string
	KVM     bool
	Image   Image
	Overlay string // path of the writable disk; "": no disks, as the probe has none
	Network string
	VCPUs   int
	Memory  int64
	TSC     int64    // kHz of the host's time stamp counter; 0: not known
	Root    bool     // started by root: QEMU gives that up once it has opened its files
	Listen  bool     // control and agent sockets are inherited as descriptors 3 and 4
	Append  []string // more words for the kernel's command line
	Backing backing
	// Incoming says that the machine goes on from a snapshot: the kernel is in its memory, the state of its devices is
	// stateFD, and it stands still until it is told to take that.
	Incoming bool
}

func (a args) isolation() string {
	if a.KVM {
		return "qemu (kvm)"
	}
	return "qemu (tcg)"
}

// argv is QEMU's command line without the program: a pure function of its receiver, pinned by a golden file.
// The same command line, but for the memory's backing, and -incoming instead of the kernel, restores a snapshot of
// the machine.
func (a args) argv() []string {
	mib := a.mib()
	sandbox, drop := "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", []string(nil)
	if a.Root {
		// Changing the user is what elevateprivileges=deny forbids; without root there is nothing to elevate to.
		sandbox, drop = strings.Replace(sandbox, "elevateprivileges=deny", "elevateprivileges=allow", 1), []string{"-runas", nobody}
	}
	v := []string{
		"-name", a.ID, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", sandbox,
		// microvm has no PCI and no option ROMs: it boots in 1.8 s under emulation where the pc machine takes 2.5 s.
		"-M", "microvm,pit=off,pic=off,rtc=on,x-option-roms=off,memory-backend=ram0",
		"-m", strconv.FormatInt(mib, 10) + "M",
		"-object", a.memory(mib),
		"-smp", strconv.Itoa(a.VCPUs),
		// The state of devices that a running machine saves has no such section.
		"-global", "migration.send-configuration=off",
	}
	v = append(v, drop...)
	if a.KVM {
		v = append(v, "-accel", "kvm", "-cpu", "host")
	} else {
		// What real processors do fast the emulator does byte by byte: rep movsb (erms). And with smap each copy from
		// a process's memory ends two blocks of translated code.
		v = append(v, "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,-erms,-smap")
	}
	if a.Incoming {
		v = append(v, "-incoming", "defer")
	} else {
		v = append(v, "-kernel", a.Image.Kernel, "-initrd", a.Image.Initrd, "-append", strings.Join(a.cmdline(), " "))
	}
	v = append(v,
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-rng-device",
	)
	if a.Overlay != "" {
		v = append(v, a.disk("root", a.Image.Root, "read-only=on,auto-read-only=off,locking=off")...)
		// The disk does not outlive the machine: nothing is ever flushed to the host's disk for it.
		v = append(v, a.disk("overlay", a.Overlay, "cache.no-flush=on,discard=unmap")...)
	}
	if a.Listen {
		v = append(v,
			"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", qmpFD), "-mon", "chardev=qmp,mode=control",
			"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", agentFD),
			"-device", "virtio-serial-device", "-device", "virtserialport,chardev=agent,name=tgr.agent,id="+portID,
		)
	}
	switch a.Network {
	case "user":
		v = append(v, "-netdev", "user,id=net0,ipv6=off", "-device", "virtio-net-device,netdev=net0")
	case slotNet:
		v = append(v, "-netdev", fmt.Sprintf("tap,id=net0,fd=%d", a.tapFD()), "-device", "virtio-net-device,netdev=net0,mac="+network.GuestMAC)
	}
	return v
}

// mib is the guest's memory in MiB, rounded up.
func (a args) mib() int64 { return (a.Memory + 1<<20 - 1) >> 20 }

// What the emulator needs besides the guest's memory: translated code (tb-size), its own, and the page cache of the
// disk, of which the kernel takes back what it needs; and threads, most of them for input and output.
const (
	extraMemory = 768 << 20
	extraCPUs   = 0.5
	extraPIDs   = 128
)

// limits are those of the process on the host.
func (a args) limits() vm.Limits {
	return vm.Limits{Memory: a.mib()<<20 + extraMemory, CPUs: float64(a.VCPUs) + extraCPUs, PIDs: a.VCPUs + extraPIDs}
}

// memory is the guest's memory as an object.
func (a args) memory(mib int64) string {
	if a.Backing == anonymous {
		return fmt.Sprintf("memory-backend-ram,id=ram0,size=%dM", mib)
	}
	share := "on"
	if a.Backing == private {
		share = "off"
	}
	return fmt.Sprintf("memory-backend-file,id=ram0,size=%dM,mem-path=/proc/self/fd/%d,share=%s", mib, ramFD, share)
}

// disk is a raw file as a virtio disk, which the guest finds by its serial number. Where the host fails to write,
// the machine stops and says so: the guest must not take the host's fault for its own.
func (a args) disk(name, file, options string) []string {
	return []string{
		"-blockdev", "driver=raw,node-name=" + name + ",file.driver=file,file.filename=" + escape(file) + "," + diskOptions(options),
		"-device", "virtio-blk-device,drive=" + name + ",serial=" + name + ",rerror=stop,werror=stop",
	}
}

// diskOptions addresses the options that belong to the file below the raw format.
func diskOptions(options string) string {
	words := strings.Split(options, ",")
	for i, w := range words {
		if strings.HasPrefix(w, "locking=") {
			words[i] = "file." + w
		}
	}
	return strings.Join(words, ",")
}

// escape doubles commas, by which QEMU separates options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// cmdline is the kernel's command line.
func (a args) cmdline() []string {
	words := []string{"console=ttyS0", "quiet", "reboot=t", "panic=-1", "audit=0", "random.trust_cpu=on", "cryptomgr.notests"}
	if !a.KVM {
		// Under emulation the calibrations of the time stamp counter and of the delay loop hang on a busy host, so
		// they are told; mitigations guard a boundary that the emulator does not have.
		if a.TSC != 0 {
			words = append(words, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", a.TSC))
		} else {
			words = append(words, "tsc_early_khz=2000000")
		}
		words = append(words, "lpj=8000000", "no_timer_check", "mitigations=off", "clearcpuid=rep_good")
		// Translated code is found by its address: at random addresses every process is translated anew, which takes
		// three times as long as running it.
		words = append(words, "norandmaps")
		// What the kernel does besides has to be translated, too, in every clone.
		words = append(words, "lsm=", "psi=0", "nowatchdog", "kfence.sample_interval=0", "init_on_alloc=0",
			"sysctl.vm.stat_interval=120", "sysctl.vm.dirty_writeback_centisecs=0", "sysctl.vm.compaction_proactiveness=0",
			"GODEBUG=asyncpreemptoff=1") // of the agent: slow code is no reason to interrupt it
	}
	switch a.Network {
	case "user":
		words = append(words, "tgr.net=10.0.2.15/24,10.0.2.2,10.0.2.3")
	case slotNet: // the same for every machine: what is in a snapshot of one holds for all
		words = append(words, fmt.Sprintf("tgr.net=%s,%s,%s", network.GuestPrefix(), network.Gateway(), network.Gateway()))
	}
	return append(words, a.Append...)
}
