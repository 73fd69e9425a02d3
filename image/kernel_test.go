package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// tinyELF is the smallest x86-64 ELF file with one note in a PT_NOTE segment.
func tinyELF(t testing.TB, name string, kind uint32) []byte {
	t.Helper()
	note := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	note = binary.LittleEndian.AppendUint32(note, 4)
	note = binary.LittleEndian.AppendUint32(note, kind)
	note = append(note, name...)
	note = append(note, make([]byte, (4-len(name)%4)%4+4)...)
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	p := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(len(note)), Memsz: uint64(len(note)), Align: 4}
	for _, v := range []any{h, p, note} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// tinyBzImage wraps a payload as the kernel's build does.
func tinyBzImage(t testing.TB, vmlinux []byte) []byte {
	t.Helper()
	var payload bytes.Buffer
	w := lz4.NewWriter(&payload)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(vmlinux); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	binary.Write(&payload, binary.LittleEndian, uint32(len(vmlinux)))
	b := make([]byte, 1024+16)
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint32(b[0x248:], 16)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(payload.Len()))
	return append(b, payload.Bytes()...)
}

func TestExtractVmlinux(t *testing.T) {
	want := tinyELF(t, "Xen\x00", 18)
	got, err := extractVmlinux(tinyBzImage(t, want))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want the %d that were packed", len(got), len(want))
	}
	if err := checkPVH(got); err != nil {
		t.Error(err)
	}
}

func TestExtractVmlinuxErrors(t *testing.T) {
	good := tinyBzImage(t, tinyELF(t, "Xen\x00", 18))
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	for name, tc := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":             {nil, "no setup header"},
		"not a kernel":      {bytes.Repeat([]byte("x"), 4096), "no setup header"},
		"payload outside":   {change(func(b []byte) { binary.LittleEndian.PutUint32(b[0x248:], 1<<31) }), "puts the payload at"},
		"payload too long":  {change(func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 1<<31) }), "puts the payload at"},
		"payload too short": {change(func(b []byte) { binary.LittleEndian.PutUint32(b[0x24c:], 4) }), "puts the payload at"},
		"not LZ4":           {change(func(b []byte) { copy(b[1040:], "\x1f\x8b") }), "not LZ4"},
		"huge":              {change(func(b []byte) { binary.LittleEndian.PutUint32(b[len(b)-4:], 1<<31) }), "more than the"},
		"wrong size":        {change(func(b []byte) { b[len(b)-4]++ }), "its trailer says"},
		"damaged":           {change(func(b []byte) { copy(b[1044:], "\xff\xff\xff\x7f") }), "unpack the payload"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := extractVmlinux(tc.b)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestCheckPVH(t *testing.T) {
	for name, tc := range map[string]struct {
		b    []byte
		want string
	}{
		"not ELF":    {[]byte("hello"), "not an ELF file"},
		"other note": {tinyELF(t, "Xen\x00", 17), "no PVH entry"},
		"other name": {tinyELF(t, "GNU\x00", 18), "no PVH entry"},
	} {
		if err := checkPVH(tc.b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, tc.want)
		}
	}
}

func TestFindKernel(t *testing.T) {
	boot := t.TempDir()
	if _, _, err := findKernel(boot); !errors.Is(err, ErrNoKernel) {
		t.Errorf("empty folder: got %v, want ErrNoKernel", err)
	}
	for _, r := range []string{"6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.1.0-100-amd64", "5.10.0-99-cloud-amd64"} {
		if err := os.WriteFile(filepath.Join(boot, "vmlinuz-"+r), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	path, release, err := findKernel(boot)
	if err != nil || release != "6.1.0-56-cloud-amd64" || filepath.Base(path) != "vmlinuz-"+release {
		t.Errorf("got %s, %s, %v: want the newest cloud kernel", path, release, err)
	}
}

func TestRealKernel(t *testing.T) {
	path, _, err := FindKernel()
	if err != nil {
		if testing.Short() {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	vmlinux, err := readVmlinux(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(vmlinux) < 10<<20 {
		t.Errorf("vmlinux has %d bytes, want some 50 MiB", len(vmlinux))
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	f.Add(tinyBzImage(f, tinyELF(f, "Xen\x00", 18)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4 { // keep the claimed size, which is allocated, small
			binary.LittleEndian.PutUint32(b[len(b)-4:], binary.LittleEndian.Uint32(b[len(b)-4:])&0xfffff)
		}
		if vmlinux, err := extractVmlinux(b); err == nil {
			checkPVH(vmlinux)
		}
	})
}
