package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"testing"
	"time"
)

func TestReader(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, io.EOF},
		{"half a header", []byte{1, 0}, io.ErrUnexpectedEOF},
		{"half a payload", []byte{1, 0, 0, 0, 5, 'a'}, io.ErrUnexpectedEOF},
		{"no payload at all", []byte{1, 0, 0, 0, 5}, io.ErrUnexpectedEOF},
		{"too long", []byte{1, 0xff, 0xff, 0xff, 0xff}, ErrProtocol},
		{"one too long", append([]byte{1}, binary.BigEndian.AppendUint32(nil, maxFrame+1)...), ErrProtocol},
		{"good", frame(kData, []byte("x")), nil},
	} {
		r := &reader{r: bytes.NewReader(tt.in), max: maxFrame}
		if _, _, err := r.next(); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if cap(r.buf) > maxFrame {
			t.Errorf("%s: %d bytes were allocated", tt.name, cap(r.buf))
		}
	}
}

// Errors keep their nature over the wire.
func TestFailure(t *testing.T) {
	for _, want := range []error{fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, ErrGone, ErrRefused} {
		got := failureOf(&fs.PathError{Op: "open", Path: "/x", Err: want}).err()
		if !errors.Is(got, want) || got.Error() != "open /x: "+want.Error() {
			t.Errorf("%v became %v", want, got)
		}
	}
	if err := (failure{Code: "nonesuch", Message: "m"}).err(); err.Error() != "m" || errors.Unwrap(err) != nil {
		t.Errorf("an unknown code became %#v", err)
	}
	if long := failureOf(errors.New(string(make([]byte, 1<<20)))); len(long.Message) > 5000 {
		t.Errorf("a message of %d bytes", len(long.Message))
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(frame(kStdout, make([]byte, 20)))
	f.Add(append(frame(kBeat, nil), frame(kEnd, []byte("{}"))...))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &reader{r: bytes.NewReader(b), max: maxFrame}
		total := 0
		for {
			_, payload, err := r.next()
			if err != nil {
				break
			}
			total += headerSize + len(payload)
		}
		if total > len(b) || cap(r.buf) > maxFrame {
			t.Errorf("%d bytes of frames in %d bytes, buffer of %d", total, len(b), cap(r.buf))
		}
	})
}

// FuzzClient plays an agent that answers each operation with the same bytes.
func FuzzClient(f *testing.F) {
	exit := func(s string) []byte { return frame(kExit, []byte(s)) }
	f.Add(exit(`{"started":true}`))
	f.Add(exit(`{"started":true,"code":-1}`))
	f.Add(append(frame(kStdout, append(make([]byte, 8), "hello"...)), exit(`{"started":true,"code":3}`)...))
	f.Add(frame(kStdout, append([]byte{0, 0, 0, 0, 0, 0, 0, 9}, "hello"...)))
	f.Add(frame(kStderr, nil))
	f.Add(frame(kError, []byte(`{"code":"not_exist","message":"no"}`)))
	f.Add(append(frame(kData, []byte("tar")), frame(kEnd, []byte(`{"skipped":["x"]}`))...))
	f.Add(frame(kEnd, []byte(`{`)))
	f.Add([]byte{19, 0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := hostile(t, func(s io.ReadWriteCloser) { s.Write(b) })
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		var out bytes.Buffer
		c.Exec(ctx, sh("x"), &out)
		if out.Len() > len(b) {
			t.Errorf("%d bytes of output in %d", out.Len(), len(b))
		}
		c.Put(ctx, "/x", bytes.NewReader(nil))
		if r, err := c.Get(ctx, "/x"); err == nil {
			io.Copy(io.Discard, r)
			r.Close()
		}
		c.Signal(ctx, "x", 9)
		if ctx.Err() != nil {
			t.Error("the client hung")
		}
	})
}

// FuzzServer plays a host that sends the same bytes as its operation.
func FuzzServer(f *testing.F) {
	f.Add(frame(kRequest, []byte(`{"op":"signal","id":"x","signal":-1}`)))
	f.Add(frame(kRequest, []byte(`{"op":"attach","id":"x","from":18446744073709551615}`)))
	f.Add(frame(kRequest, []byte(`{"op":"put","dir":"cmVsYXRpdmU="}`)))
	f.Add(frame(kRequest, []byte(`{"op":"prepare"}`)))
	f.Add(frame(kRequest, []byte(`{`)))
	f.Add(frame(kAck, []byte("12345678")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Contains(b, []byte("exec")) || bytes.Contains(b, []byte("start")) || bytes.Contains(b, []byte("put")) {
			return // it would do as it is told
		}
		s := NewServer(ServerConfig{})
		defer s.Close()
		host, agent := streams(t)
		go func() {
			host.Write(b)
			host.Close()
		}()
		s.serve(agent)
	})
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(helloMark + "0123456789abcdef" + startMark + "0123456789abcdef"))
	f.Add([]byte(helloMark + helloMark + "0123456789abcdef"))
	f.Add([]byte("\xff\xff" + readyMark + "0123456789abcdef\xff\xff\xff\xff"))
	f.Add([]byte(readyMark + "0123456789abcdef\x00\x00\x00\x02{}" + goingMark + "0123456789abcdef"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var nonce [nonceSize]byte
		copy(nonce[:], "0123456789abcdef")
		awaitReady(newBufio(b), nonce)
		answer(context.Background(), discardConn{}, newBufio(b), false, helloOf(Hello{}))
	})
}
