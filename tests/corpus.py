"""Lines by hand: valid, invalid and borderline. Each differs from a plain event in one respect that parsers get wrong."""

from __future__ import annotations

HEAD = b'{"event":"Buffer","ts":1790000000000,"device_id":"d-1","session_id":"s-1"'


def _with(*members: bytes) -> list[bytes]:
    return [HEAD + b"," + member + b"}" for member in members]


def _ts(*texts: bytes) -> list[bytes]:
    return [b'{"event":"Start","ts":' + text + b',"device_id":"d","session_id":"s"}' for text in texts]


def _name(*texts: bytes) -> list[bytes]:
    return [b'{"event":' + text + b',"ts":1,"device_id":"d","session_id":"s"}' for text in texts]


VALID_SHAPES = [
    HEAD + b"}", b"  \t\r" + HEAD + b" } \r", HEAD.replace(b",", b" ,\t") + b"\r}", HEAD.replace(b":", b" : ", 1) + b"}",
    b'{ "session_id" : "s" , "device_id":"d","ts":5,"event":"Stop" }',
    b'{"ts":1,"ts":2,"event":"Start","event":"Stop","device_id":"a","device_id":"b","session_id":"x","session_id":"y"}',
    b'{"\\u0065vent":"Start","t\\u0073":3,"device\\u005fid":"d","session_id":"s"}',
    b'{"event":"St\\u0061rt","ts":3,"device_id":"\\u0064\\n","session_id":"\\ud83d\\ude00"}',
    '{"event":"Start","ts":3,"device_id":"\u00e9\u4e2d\U0001f600","session_id":"\x7f"}'.encode(),
    b'{"event":"","ts":0,"device_id":"","session_id":""}',
]  # fmt: skip
EVENT_NAMES = _name(
    b'"START"', b'"heartbeat"', b'"hEaRtBeAt"', b'"stop"', b'"BUFFER"', b'"error"', b'"Pause"', b'"pause"', '"\u017ftart"'.encode(), b'"Start "', b'" Start"',
    b'"Starts"', b'"Star"', b"5", b"null", b"true", b"[]", b"{}", b'["Start"]', b'"\\u0000"', '"He\u0430rtbeat"'.encode(),
)  # fmt: skip
TIMES = _ts(
    b"0", b"-0", b"-0.9", b"-1", b"-0.0", b"1e3", b"1E3", b"1e+3", b"1.790e12", b"1790000000000.999", b"9007199254740991", b"9007199254740992", b"9007199254740991.9",
    b"9007199254740990.99999999999999999999", b"1e15", b"1e16", b"1e400", b"1e-400", b"123456789e-3", b"0e99999999999999999999", b"1e99999999999999999999",
    b"1e-99999999999999999999", b"0.00000000000000000000000001e30", b"100000000000000000000e-10", b"12345678", b"1234567", b"123456789", b"1234567812345678", b"123456781234567",
    b"00", b"01", b"-01", b"1.", b".5", b"+1", b"1e", b"1e+", b"1.e1", b"0x10", b"1_000", b"NaN", b"Infinity", b"-Infinity", b"nan", b"-", b"--1", b"1 2", b"1a",
    b'"5"', b"true", b"false", b"null", b"[1]", b'{"a":1}', b"", b"tru", b"nul", b"nulll", b"truee", b"True",
)  # fmt: skip
INTEGERS = _with(
    b'"seq":0', b'"seq":-0', b'"seq":-7', b'"seq":1e3', b'"seq":1.9', b'"seq":-1.9', b'"seq":9007199254740992', b'"seq":-9007199254740992', b'"seq":9007199254740993',
    b'"seq":-9007199254740993', b'"seq":9007199254740992.9', b'"seq":"5"', b'"seq":true', b'"seq":null', b'"seq":[]', b'"seq":1e300', b'"seq":5,"seq":"x"',
    b'"seq":"x","seq":5', b'"seq":5,"seq":null', b'"seq":"x","seq":null', b'"seq":"x","seq":"y"', b'"stall_ms":01', b'"bitrate_kbps":3000.5', b'"position_ms":-5',
    b'"buffer_ms":12345678901234567890', b'"dropped_frames":0.00', b'"startup_ms":{}', b'"bitrate_kbps": 4300', b'"bitrate_kbps":\t4300 ', b'"seq":99999999', b'"seq":100000000',
)  # fmt: skip
STRINGS = _with(
    b'"region":"us-east-1"', b'"region":""', b'"region":5', b'"region":5.50', b'"region":-0', b'"region":1e5', b'"region":true', b'"region":null', b'"region":["a"]',
    b'"region":"a","region":7', b'"region":7,"region":"a"', b'"region":"a","region":null', b'"region":"a","region":false', b'"user_id":12', b'"user_id":12,"user_id":null',
    b'"user_id":"u","user_id":{}', b'"user_id":""', b'"error_code":404', b'"error_code":"E1"', b'"phase":"startup"', b'"phase":"seek"', b'"phase":"Startup"', b'"phase":3',
    b'"phase":null', b'"reason":1', b'"fatal":true', b'"fatal":false', b'"fatal":1', b'"fatal":"true"', b'"fatal":null', b'"fatal":true,"fatal":null', b'"fatal":true,"fatal":0',
    b'"region":"0123456789abcdef"', b'"region":"0123456789abcdefg"', b'"region":"01234567"', b'"region":"' + b"r" * 31 + b'"', b'"region":"' + b"r" * 32 + b'"',
    b'"region":"' + b"r" * 33 + b'"', b'"region":"' + b"r" * 300 + b'"', b'"region":"\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"region":"\\u00e9"', b'"region":"\\uD83D\\uDE00"',
    b'"region":"\\ud83d"', b'"region":"\\ude00"', b'"region":"\\ud83d\\ud83d"', b'"region":"\\ud83dx"', b'"region":"\\u12"', b'"region":"\\u12g4"', b'"region":"\\x41"',
    b'"region":"\\U0041"', b'"region":"\\', b'"region":"a\tb"', b'"region":"a\x00b"', b'"region":"a\x1fb"', b'"region":"a\x7fb"', b'"region":"abc', b"\"region\":'a'",
    b'"region":"\xff"', b'"region":"\xc3"', b'"region":"\xc0\x80"', b'"region":"\xed\xa0\x80"', b'"region":"\xf4\x90\x80\x80"', b'"region":"\xe2\x82"', b'"region":"\xf0\x9f\x98\x80"',
    b'"region":"\xef\xbb\xbf"', b'"region":"\xe0\x80\x80"', b'"region":"\xf0\x80\x80\x80"',
)  # fmt: skip
EXTRAS = _with(
    b'"foo":1', b'"foo":"bar"', b'"foo":null', b'"foo":1,"foo":null', b'"foo":null,"foo":2', b'"foo":1,"foo":2', b'"f\\u006fo":1,"foo":2', b'"foo":1,"bar":[1,{"a":[]}]',
    b'"Event":"x"', b'"EVENT":"Stop"', b'"":1', b'"":""', b'"ts ":5', b'"a\\"b":1', b'"\xc3\xa9":1', b'"foo":01', b'"foo":tru', b'"foo":[1,]', b'"foo":[,1]', b'"foo":[1 2]',
    b'"foo":{"a":1,}', b'"foo":{"a"}', b'"foo":{"a":}', b'"foo":{a:1}', b'"foo":{"a":1 "b":2}', b'"foo":[}', b'"foo":{]', b'"foo":[', b'"foo":{', b'"foo":]', b'"foo":NaN',
    b'"foo":-', b'"foo":1e5', b'"foo":1E+5', b'"foo":1.', b'"foo":[ ]', b'"foo":{ }', b'"foo":[[],{}]', b'"foo":{"a":{"a":1},"a":2}', b'"foo":"\\ud800"', b'"foo":{"\\ud800":1}',
    b'"foo":["\xff"]', b'"foo": \t[ 1 , 2 ]\r', b'"very_long_key_that_no_glue_of_thirty_two_bytes_holds":"x"', b'"very_long_key_that_no_glue_of_thirty_two_bytes_holds":1',
    b",".join(b'"k%d":%d' % (i, i) for i in range(40)), b",".join(b'"k%d":%d' % (i % 7, i) for i in range(40)), b",".join(b'"k%d":null' % (i % 5) for i in range(40)),
    b'"foo":1,"seq":"x","foo":2,"seq":"y"',
    b",".join(b'"k%d":%d' % (i, i) for i in range(16)) + b',"seq":"x","k3":9,"k20":1,"k20":2,"k0":null',
    b",".join(b'"k%d":%d' % (i, i) for i in range(15)) + b',"seq":"x","stall_ms":"y","k3":9,"k21":1,"seq":"z","k21":2',
)  # fmt: skip
DEPTHS = _with(
    b'"foo":' + b"[" * 63 + b"]" * 63, b'"foo":' + b"[" * 64 + b"]" * 64, b'"foo":' + b'{"a":' * 63 + b"1" + b"}" * 63, b'"foo":' + b'{"a":' * 64 + b"1" + b"}" * 64,
    b'"foo":' + b"[" * 64 + b"]" * 63, b'"foo":' + b"[" * 100 + b"]" * 100 + b',"foo":1', b'"foo":' + b"[" * 5000 + b"]" * 5000, b'"foo":' + b"[" * 5000,
    b'"foo":' + b"[" * 70 + b"\xff" + b"]" * 70, b'"seq":' + b"[" * 64 + b"]" * 64, b'"device_id":' + b"[" * 64 + b"]" * 64,
)  # fmt: skip
NOT_EVENTS = [
    b"[]", b"5", b'"x"', b"null", b"true", b"[" * 70 + b"]" * 70, b"[" + HEAD + b"}]", b"{}", b"{ }", b"{", b"}", b"{}}", b"{}{}", HEAD, HEAD + b",}", HEAD + b"},", HEAD + b"}x",
    HEAD + b"} " + HEAD + b"}", b"\xef\xbb\xbf" + HEAD + b"}", b"\xff", b"\x00", b"\x0c", b"\x0b" + HEAD + b"}", b"\xc2\xa0" + HEAD + b"}", HEAD + b"}\x00", b"// comment", b"nul", b"'",
    b'{"event":"Start"}', b'{"ts":1}', b'{"event":null,"ts":1,"device_id":"d","session_id":"s"}', b'{"event":"Start","ts":"x","session_id":"s"}',
    b'{"event":"Start","ts":1,"device_id":5,"session_id":"s"}', b'{"event":"Start","ts":1,"device_id":"d","session_id":7.5}',
    b'{"event":"Start","ts":1,"device_id":"d","device_id":null,"session_id":"s"}', b'{"event":"Start","ts":1,"device_id":5,"device_id":"d","session_id":"s"}',
    b'{"event":"Start","ts":1,"device_id":"d","device_id":5,"session_id":"s"}', b'{"event":"Start","ts":1,"device_id":null,"device_id":"d","session_id":"s"}',
    b'{,"event":"Start"}', b'{"event" "Start"}', b'{"event"::"Start"}', b'{event:"Start"}', b'{"event":"Start",,"ts":1}', b'{"event":"Start";"ts":1}', b"\\", b'{"\\', b'{"',
]  # fmt: skip
SIZES = [
    HEAD + b',"foo":"' + b"x" * (size - len(HEAD) - 10) + b'"}' for size in (65_535, 65_536, 65_537, 1_048_575, 1_048_576, 1_048_577, 1_100_000)
] + [
    HEAD + b',"region":"' + b"x" * 1_048_600 + b'"}', HEAD + b',"device_id":"' + b"x" * 1_200_000 + b'"}', b"x" * 1_048_577, b" " * 1_048_577,
    HEAD + b"}" + b" " * 1_048_577, b"[" * 1_048_576, b"[" * 1_048_577, HEAD + b',"\\u0061' + b"y" * 1_048_600 + b'":1}', HEAD + b"," + b",".join([b'"":0'] * 209_000) + b"}",
    HEAD + b"," + b",".join(b'"k%d":0' % i for i in range(70_000)) + b"}", HEAD + b"," + b",".join([b'"":0'] * 230_000) + b"}",
    HEAD + b"," + b",".join(b'"region":"%06d"' % i for i in range(50_000)) + b"}",
]  # fmt: skip
BLANKS = [b"", b" ", b"\t\r ", b"\r"]

SMALL = VALID_SHAPES + EVENT_NAMES + TIMES + INTEGERS + STRINGS + EXTRAS + DEPTHS + NOT_EVENTS + BLANKS
ALL = SMALL + SIZES
