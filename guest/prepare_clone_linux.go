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
	kernelID  string // over which the boot id is mounted
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
	if err := f.mountBootID(); err != nil {
		return fmt.Errorf("prepare: boot id: %w", err)
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

// overwrite writes over the beginning of a file that exists. Unlike os.WriteFile it leaves out the file's end, which ids of
// one length do not have, and Go's poller and finalizers: all of that is code which every clone translates.
func overwrite(path string, b []byte) error {
	return withFD(path, unix.O_WRONLY, func(fd int) (err error) {
		for len(b) > 0 && err == nil {
			var n int
			n, err = unix.Write(fd, b)
			b = b[max(n, 0):]
		}
		return err
	})
}

// withFD opens a file for do, for the reasons of overwrite.
func withFD(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(do(fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
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
	return f.mountBootID()
}

// mountBootID shows the boot id where the kernel shows its own, which is the same in all clones.
func (f idFiles) mountBootID() error {
	ours, err := os.Stat(f.ourBootID())
	if err != nil {
		return err
	}
	if shown, err := os.Stat(f.kernelID); err == nil && os.SameFile(ours, shown) {
		return nil // from an earlier call
	}
	return unix.Mount(f.ourBootID(), f.kernelID, "", unix.MS_BIND, "")
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
	err := withFD(f.arp, unix.O_RDONLY, func(fd int) error {
		for b := make([]byte, 4<<10); ; {
			n, err := unix.Read(fd, b)
			if n <= 0 {
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
