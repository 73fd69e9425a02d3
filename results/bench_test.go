package results

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
)

// BenchmarkUpload sends a cache as GitHub's client does, in one piece or in blocks of 32 MiB, 8 at a time.
func BenchmarkUpload(b *testing.B) {
	data := make([]byte, 256<<20)
	rand.Read(data)
	for _, blocks := range []int{1, 8} {
		b.Run(fmt.Sprint("blocks=", blocks), func(b *testing.B) {
			c := began(b, opened(b, Config{}), jobOn(1, "main"))
			b.SetBytes(int64(len(data)))
			b.ResetTimer()
			n := 0
			for b.Loop() {
				n++
				key := fmt.Sprint("k", n)
				data[0], data[len(data)-1] = byte(n), byte(n) // or nothing would have to be kept
				addr := c.create(key)
				if blocks == 1 {
					c.want(201, c.do("PUT", addr, bytes.NewReader(data), "x-ms-blob-type", "BlockBlob"))
				} else {
					var wg sync.WaitGroup
					var list []int
					for i := range blocks {
						list = append(list, i)
						size := len(data) / blocks
						wg.Go(func() {
							c.want(201, c.do("PUT", addr+"&comp=block&blockid="+blockID(i), bytes.NewReader(data[i*size:(i+1)*size])))
						})
					}
					wg.Wait()
					c.want(201, c.blockList(addr, list...))
				}
				c.want(200, c.finalize(key, len(data)))
			}
		})
	}
}

// BenchmarkDownload fetches a cache.
func BenchmarkDownload(b *testing.B) {
	c := began(b, opened(b, Config{}), jobOn(1, "main"))
	data := make([]byte, 256<<20)
	rand.Read(data)
	c.want(200, c.save("k", data))
	addr := c.want(200, c.cache("GetCacheEntryDownloadURL", map[string]any{"key": "k", "version": version})).field("signed_download_url")
	b.SetBytes(int64(len(data)))
	buf := make([]byte, 256<<10)
	b.ResetTimer()
	for b.Loop() {
		resp, err := http.Get(addr)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{resp.Body}, buf)
		resp.Body.Close()
		if err != nil || n != int64(len(data)) {
			b.Fatalf("%d bytes, %v", n, err)
		}
	}
}

// BenchmarkLookUp finds a cache among a thousand.
func BenchmarkLookUp(b *testing.B) {
	c := began(b, opened(b, Config{}), jobOn(1, "main"))
	for i := range 1000 {
		c.want(200, c.save(fmt.Sprint("go-", i), []byte{byte(i)}))
	}
	for b.Loop() {
		if key, _ := c.restore("go-none", "go-"); key != "go-999" {
			b.Fatal(key)
		}
	}
}
