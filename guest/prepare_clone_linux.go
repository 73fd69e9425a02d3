package guest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idFiles are the files that have to do with who a machine is.
type idFiles struct {
	dir       string // in memory; the ids are written there
	machineID string // machine-id(5), a link to dir
	kernelID  string // over which the boot id is mounted when the machine boots
	arp       string // the neighbour cache, to be read
}

func machineFiles() idFiles {
	return idFiles{"/run/tgr", "/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/net/arp"}
}

func (f idFiles) ourMachineID() string { return filepath.Join(f.dir, "machine-id") }
func (f idFiles) ourBootID() string    { return filepath.Join(f.dir, "boot_id") }

// prepareClone is prepare and what else the clones of a snapshot have in common: machine-id and boot id, which are
// derived from the host's entropy, and what the network's neighbours were.
func prepareClone(id *Identity) error {
	if err := prepare(id); err != nil {
		return err
	}
	if len(id.Entropy) == 0 {
		return nil
	}
	f := machineFiles()
	if err := f.identify(id.Entropy); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := f.forgetNeighbours(); err != nil {
		return fmt.Errorf("prepare: neighbours: %w", err)
	}
	return nil
}

// derive makes 128 bits for one purpose of entropy that also goes to the kernel, from which they do not tell.
func derive(entropy []byte, purpose string) [16]byte {
	h := sha256.New()
	fmt.Fprintf(h, "tgr %s %d\n", purpose, len(entropy))
	h.Write(entropy)
	return [16]byte(h.Sum(nil))
}

// identify writes both ids. The boot id's file is overwritten in its place: it may be mounted already.
func (f idFiles) identify(entropy []byte) error {
	m, b := derive(entropy, "machine-id"), derive(entropy, "boot-id")
	for _, id := range []*[16]byte{&m, &b} { // as random UUIDs are, RFC 9562
		id[6] = id[6]&0x0f | 0x40
		id[8] = id[8]&0x3f | 0x80
	}
	if err := overwrite(f.ourMachineID(), []byte(hex.EncodeToString(m[:])+"\n")); err != nil {
		return err
	}
	s := hex.EncodeToString(b[:])
	uuid := strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
	return overwrite(f.ourBootID(), []byte(uuid+"\n"))
}

// overwrite writes over the beginning of a file that exists.
func overwrite(path string, b []byte) error {
	return withFD(path, unix.O_WRONLY, func(fd uintptr) error {
		for len(b) > 0 {
			n, err := raw(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
			if err != nil {
				return err
			}
			b = b[n:]
		}
		return nil
	})
}

// withFD opens a file of the kernel's or in memory for do.
func withFD(path string, flags int, do func(fd uintptr) error) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	here := unix.AT_FDCWD
	fd, err := raw(unix.SYS_OPENAT, uintptr(here), uintptr(unsafe.Pointer(name)), uintptr(flags|unix.O_CLOEXEC))
	if err == nil {
		err = do(fd)
		raw(unix.SYS_CLOSE, fd, 0, 0)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// raw makes a system call that cannot wait. Nothing in Prepare can, and an emulated clone would have to translate all that
// Go does about calls that may, its poller, finalizers and another thread, before its first job: half of Prepare.
//
//go:uintptrescapes
func raw(trap, a, b, c uintptr) (uintptr, error) {
	r, _, errno := unix.RawSyscall(trap, a, b, c)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// settle makes both ids files in memory, when the machine boots: writing to a disk for the first time would take each
// clone of an emulated machine tens of milliseconds.
func (f idFiles) settle() error {
	boot, err := os.ReadFile(f.kernelID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(f.ourMachineID(), nil, 0o644), os.WriteFile(f.ourBootID(), boot, 0o644)); err != nil {
		return err
	}
	if err := os.Remove(f.machineID); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(f.ourMachineID(), f.machineID); err != nil {
		return err
	}
	return unix.Mount(f.ourBootID(), f.kernelID, "", unix.MS_BIND, "") // the kernel shows its own, which is that of all clones
}

// arpRequest is struct arpreq of arp(7).
type arpRequest struct {
	protocol unix.RawSockaddrInet4
	hardware unix.RawSockaddr
	flags    int32
	mask     unix.RawSockaddr
	device   [16]byte
}

// forgetNeighbours drops what the machine knew of its network when the snapshot was taken: the clone's may be
// another one.
func (f idFiles) forgetNeighbours() error {
	var table []byte
	err := withFD(f.arp, unix.O_RDONLY, func(fd uintptr) error {
		for b := make([]byte, 4<<10); ; {
			n, err := raw(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
			if n == 0 {
				return err
			}
			table = append(table, b[:n]...)
		}
	})
	if err != nil {
		return err
	}
	known := parseARP(table)
	if len(known) == 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range known {
		req := arpRequest{protocol: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: n.addr.As4()}}
		copy(req.device[:len(req.device)-1], n.device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCDARP, uintptr(unsafe.Pointer(&req)))
		if errno != 0 && !errors.Is(errno, unix.ENXIO) && !errors.Is(errno, unix.ENOENT) { // gone by itself
			return fmt.Errorf("%s: %w", n.addr, errno)
		}
	}
	return nil
}

type neighbour struct {
	addr   netip.Addr
	device string
}

// parseARP reads proc(5)'s net/arp: a heading, then a line of columns for each neighbour.
func parseARP(b []byte) []neighbour {
	var known []neighbour
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 6 {
			continue
		}
		if addr, err := netip.ParseAddr(f[0]); err == nil && addr.Is4() {
			known = append(known, neighbour{addr, f[5]})
		}
	}
	return known
}
