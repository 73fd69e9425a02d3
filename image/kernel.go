package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pierrec/lz4/v4"
)

const (
	maxKernel  = 64 << 20  // bytes of a bzImage; Debian's is 7 MiB
	maxVmlinux = 256 << 20 // bytes of a vmlinux; Debian's is 50 MiB
)

// ErrNoKernel is returned (wrapped) when no kernel package is installed.
var ErrNoKernel = errors.New("no cloud kernel in /boot: install the Debian package linux-image-cloud-amd64")

// FindKernel returns the newest /boot/vmlinuz-*-cloud-amd64 and its release.
func FindKernel() (path, release string, err error) { return findKernel("/boot") }

func findKernel(boot string) (path, release string, err error) {
	paths, err := filepath.Glob(filepath.Join(boot, "vmlinuz-*-cloud-amd64"))
	if err != nil {
		return "", "", err
	}
	for _, p := range paths {
		if r := releaseOf(p); path == "" || compareReleases(r, release) > 0 {
			path, release = p, r
		}
	}
	if path == "" {
		return "", "", ErrNoKernel
	}
	return path, release, nil
}

func releaseOf(path string) string { return strings.TrimPrefix(filepath.Base(path), "vmlinuz-") }

// compareReleases orders kernel releases as version numbers: digits by value, the rest by byte.
func compareReleases(a, b string) int {
	as, bs := splitRelease(a), splitRelease(b)
	for i := 0; i < len(as) && i < len(bs); i++ {
		x, errx := strconv.Atoi(as[i])
		y, erry := strconv.Atoi(bs[i])
		if errx == nil && erry == nil && x != y {
			return x - y
		}
		if c := strings.Compare(as[i], bs[i]); c != 0 && (errx != nil || erry != nil) {
			return c
		}
	}
	return len(as) - len(bs)
}

func splitRelease(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '.' || r == '-' || r == '~' || r == '+' })
}

// readVmlinux extracts the ELF kernel from the bzImage at path and checks that it can be booted by PVH.
func readVmlinux(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxKernel {
		return nil, fmt.Errorf("%s: %d bytes are too many for a kernel", path, fi.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	vmlinux, err := extractVmlinux(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := checkPVH(vmlinux); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return vmlinux, nil
}

// extractVmlinux unpacks the LZ4 payload of a bzImage. Rules: Documentation/x86/boot.rst (setup header) and the
// legacy frame of LZ4; the kernel's build appends the unpacked size to the payload.
func extractVmlinux(b []byte) ([]byte, error) {
	const setupSects, magic, payloadOffset, payloadLength, headerEnd = 0x1f1, 0x202, 0x248, 0x24c, 0x250
	if len(b) < headerEnd || string(b[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage: no setup header")
	}
	sects := int64(b[setupSects])
	if sects == 0 {
		sects = 4
	}
	off := (sects+1)*512 + int64(binary.LittleEndian.Uint32(b[payloadOffset:]))
	end := off + int64(binary.LittleEndian.Uint32(b[payloadLength:]))
	if off >= end || end > int64(len(b)) || end-off < 12 {
		return nil, fmt.Errorf("the setup header puts the payload at %d to %d of %d bytes", off, end, len(b))
	}
	payload := b[off:end]
	if binary.LittleEndian.Uint32(payload) != 0x184c2102 {
		return nil, fmt.Errorf("the payload is not LZ4 (starts with %x): only Debian's LZ4 kernels are supported", payload[:4])
	}
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	if size > maxVmlinux {
		return nil, fmt.Errorf("the payload claims %d bytes, more than the %d that are allowed", size, maxVmlinux)
	}
	out := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead))
	n, err := io.Copy(out, io.LimitReader(lz4.NewReader(bytes.NewReader(payload[:len(payload)-4])), size+1))
	if err != nil {
		return nil, fmt.Errorf("unpack the payload: %w", err)
	}
	if n != size {
		return nil, fmt.Errorf("the payload unpacks to %d bytes, its trailer says %d", n, size)
	}
	return out.Bytes(), nil
}

// checkPVH looks for the note XEN_ELFNOTE_PHYS32_ENTRY, by which QEMU finds the kernel's 32-bit entry point.
func checkPVH(vmlinux []byte) error {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return fmt.Errorf("the payload is not an ELF file: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("the kernel is for %v, want x86-64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return fmt.Errorf("read the ELF notes: %w", err)
		}
		if hasNote(notes, "Xen\x00", 18) {
			return nil
		}
	}
	return errors.New("the kernel has no PVH entry point (CONFIG_PVH)")
}

func hasNote(b []byte, name string, kind uint32) bool {
	pad := func(n uint32) int64 { return (int64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nlen, dlen, typ := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
		next := 12 + pad(nlen) + pad(dlen)
		if next > int64(len(b)) {
			return false
		}
		if typ == kind && string(b[12:12+nlen]) == name {
			return true
		}
		b = b[next:]
	}
	return false
}
