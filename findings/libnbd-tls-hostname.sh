# libnbd 1.24.4 takes the parameter tls-hostname of an NBD URI for the name in the server's certificate. 1.14.2 does not know it and says nothing:
# it goes on with the host of the URI, and a server whose certificate has the right name is refused with "Error in the certificate
# verification". No version says anything of a parameter that it does not know, so that one with a slip of the pen is as good as none.
# Needs root (chroot), the command openssl, and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
need openssl
mkdir certificates && cd certificates
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -subj /CN=authority -days 30 2>openssl.log
openssl req -newkey rsa:2048 -nodes -keyout server-key.pem -out server.csr -subj /CN=disk.example 2>openssl.log
printf 'subjectAltName=DNS:disk.example\n' >names
openssl x509 -req -in server.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out server-cert.pem -days 30 -extfile names 2>openssl.log
cd "$work"
port=$((20000 + $$ % 20000))
asked() {  # PARAMETER: what nbdinfo says of a server with the certificate of disk.example
    cp -r certificates root/tmp
    # shellcheck disable=SC2016 # for the inner shell
    in_root sh -c '
        nbdkit -f -i 127.0.0.1 -p "$1" --tls=require --tls-certificates=/tmp/certificates memory 1M 2>/tmp/nbdkit.log & server=$!
        until nbdinfo --size "nbds://127.0.0.1:$1/?tls-certificates=/tmp/certificates$2" >/tmp/said 2>&1; do
            case $(cat /tmp/said) in *refused*) sleep 0.2 ;; *) break ;; esac
        done
        kill "$server"' sh "$port" "$1"
    tail -n 1 root/tmp/said | sed 's/.*gnutls_handshake: //'
}
refused="Error in the certificate verification. (15/1)"
debian_packages bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
expect "1.14.2, tls-hostname=disk.example" "$refused" "$(asked '&tls-hostname=disk.example')"
expect "1.14.2, no-such-parameter=1" "$refused" "$(asked '&no-such-parameter=1')"
rm -rf "$work/root" "$work/apt"
debian_packages sid nbdkit=1.48.1-1 libnbd-bin=1.24.4-1
expect "1.24.4, tls-hostname=disk.example" 1048576 "$(asked '&tls-hostname=disk.example')"
expect "1.24.4, no-such-parameter=1" "$refused" "$(asked '&no-such-parameter=1')"
