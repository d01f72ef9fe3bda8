"""Printed values for generated documents: half real words, half pseudo-words and random strings.

Names, codes, prices and dates are drawn so that they cannot be guessed from the language around them: a
reader that does not look at the page fails. Everything is printable ASCII (32 to 126).
"""

from random import Random


def _list(text: str) -> list[str]:
    return text.split()


ITEMS = _list("""
Milk Bread Butter Eggs Rice Salt Sugar Flour Coffee Tea Honey Apples Pears Plums Grapes Lemons Onions Leeks
Carrots Beans Peas Soup Pasta Cheese Yogurt Juice Water Soap Paper Pencil Ruler Glue Tape Brush Paint Nails
Bolt Nut Screw Hammer Saw Drill Cable Lamp Bulb Fuse Plug Battery Chain Pedal Tyre Pump Bell Rope Bucket
Broom Towel Blanket Pillow Candle Mug Plate Fork Spoon Knife Pan Kettle Hat Scarf Gloves Socks Shirt Belt
Boots Jacket Map Book Stamp Card Pen Ink Folder Stapler Clock Mirror Vase Frame Shelf Chair Table Seeds Soil
Spade Hose Ladder Valve Filter
""")
CITIES = _list("""
Paris Rome Oslo Lima Cairo Delhi Tokyo Seoul Quito Dakar Lagos Bern Vienna Prague Dublin Leeds York Bath
Lyon Nice Turin Milan Porto Seville Madrid Athens Riga Vilnius Tallinn Warsaw Gdansk Bergen Malmo Turku
Boston Dallas Denver Austin Miami Tampa Reno Salem Perth Hobart Osaka Kyoto Hanoi Manila Accra Tunis
""")
FIRST_NAMES = _list("""
Anna Ben Carla David Eva Frank Grace Hugo Ivy Jack Karen Leo Maria Nils Olga Paul Rosa Sam Tina Uwe Vera
Will Yara Zoe Amir Bela Chen Dara Emil Fatma Goran Hana Igor Jana Kofi Lena Mina Noor Omar Priya
""")
LAST_NAMES = _list("""
Smith Brown Jones Miller Davis Wilson Moore Clark Lewis Walker Hall Young King Wright Hill Scott Green Baker
Adams Nelson Carter Mitchell Perez Turner Parker Evans Collins Stewart Morris Reed Cook Bell Ward Cox Gray
Ruiz Novak Berg Weber Rossi Silva Kumar Sato Kim Haddad Okoye
""")
WORDS = _list("""
about above after again air all also animal answer any area around ask away back ball base bear beauty bed
before begin behind best better big bird black blue boat body book both box boy bring brother build busy
call came car care carry center chance change check city class clear close cold color come common cook cool
copy corner country course cover cross cry cut dark day deep door down draw dream drive dry early earth east
easy eat edge end enough even every eye face fact fall family far farm fast father feel few field fill final
find fine fire first fish five floor fly follow food foot force form found four free friend front full game
garden gave gold gone good grass great green ground group grow half hand happy hard head hear heart heat
heavy help here high hold home horse hot hour house ice idea inch island job join jump keep kind king know
lake land large last late laugh lead learn leave left letter level life light line list little live long
look lot love low machine main make many map mark may mean meet mind minute miss money month moon more
morning mother mountain move much music name near need never new next night north nose note noun number
object ocean often old only open order other over own page paint pair part pass past path pay people person
piece place plain plan plant play point pole poor port power press print problem public pull push put
question quick rain reach read ready real red rest rich ride right ring river road rock room round rule run
safe said sail salt same sand save school sea season seat second seed sell send serve shape sharp ship shop
short show side sign simple sing sit size skin sky sleep slow small snow soft some song soon sound south
space speak spell spring square stand star start state station stay step still stone stop store story street
strong summer sun sure table take talk tall teach team tell test thing think third three through tie time
tiny today together told tool top touch town track trade train travel tree true try turn under unit until
use valley vary very view village visit voice wait walk wall want warm watch water wave way week weight west
wheel white whole wide wild wind window winter wish wood word work world yard year yellow yes young zone
""")
SHOP_KINDS = _list("""
Shop Store Market Cafe Bakery Books Tools Garden Bikes Deli Foods Hardware Pharmacy Repairs
""")
STREETS = ("St", "Rd", "Ave", "Lane", "Way")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_ONSETS = _list("""
b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sk sl sm sn sp st str tr ch sh th qu
""")
_VOWELS = _list("""
a e i o u a e i o u y ai ea ee oa ou
""")
_CODAS = ("", "", "", "", "n", "r", "s", "t", "l", "m", "k", "d", "x", "ng", "rt", "nd", "ck")
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I and O: in a random string they cannot be told from 1 and 0
_ASCII = "".join(chr(code) for code in range(33, 127) if chr(code) not in "IOl|0")


def pseudo_word(rng: Random, syllables: int | None = None) -> str:
    """A lower-case word of random syllables, such as "klevorn"."""
    count = syllables or rng.choice((1, 2, 2, 2, 3))
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(count))
    return word[:9]


def vary_case(rng: Random, word: str) -> str:
    """The word in lower, Title or UPPER case."""
    draw = rng.random()
    return word.lower() if draw < 0.35 else word.capitalize() if draw < 0.8 else word.upper()


def _real_or_pseudo(rng: Random, real: list[str]) -> str:
    return rng.choice(real) if rng.random() < 0.5 else pseudo_word(rng).capitalize()


def item(rng: Random) -> str:
    """Something for sale, capitalised: "Lamp", "Kelvo", now and then with a model number or a second word."""
    name = _real_or_pseudo(rng, ITEMS)
    draw = rng.random()
    if draw < 0.08:
        return f"{name} {rng.randint(2, 99)}"
    return f"{name} {rng.choice(WORDS)}" if draw < 0.16 else name


def city(rng: Random) -> str:
    return _real_or_pseudo(rng, CITIES)


def person(rng: Random) -> str:
    """First and last name, or initial and last name."""
    first, last = _real_or_pseudo(rng, FIRST_NAMES), _real_or_pseudo(rng, LAST_NAMES)
    return f"{first[0]}. {last}" if rng.random() < 0.25 else f"{first} {last}"


def shop(rng: Random) -> str:
    """A business name: "Kelvo Tools", "Reed & Novak", "The Tarn Cafe"."""
    name, draw = _real_or_pseudo(rng, LAST_NAMES), rng.random()
    if draw < 0.55:
        return f"{name} {rng.choice(SHOP_KINDS)}"
    return (
        f"{name} & {_real_or_pseudo(rng, LAST_NAMES)}" if draw < 0.8 else f"{name} {rng.choice(('Ltd', 'Inc', 'Co.'))}"
    )


def digits(rng: Random, count: int) -> str:
    """``count`` random digits, the first not zero."""
    return str(rng.randrange(10 ** (count - 1), 10**count))


def letters(rng: Random, count: int) -> str:
    return "".join(rng.choice(_CODE_LETTERS) for _ in range(count))


def code(rng: Random) -> str:
    """A reference such as "KX-2041", "7Q4M", "#50318" or "2024/117"."""
    draw = rng.randrange(6)
    if draw == 0:
        return f"{letters(rng, rng.randint(1, 3))}-{digits(rng, rng.randint(2, 4))}"
    if draw == 1:
        return "".join(rng.choice(_CODE_LETTERS + "23456789") for _ in range(rng.randint(4, 7)))
    if draw == 2:
        return rng.choice(("#", "")) + digits(rng, rng.randint(4, 6))
    if draw == 3:
        return f"{rng.randint(2001, 2039)}/{digits(rng, rng.randint(2, 4))}"
    if draw == 4:
        return letters(rng, rng.randint(1, 2)) + digits(rng, rng.randint(2, 5))
    return f"{digits(rng, rng.randint(2, 3))}-{letters(rng, rng.randint(2, 3))}"


def amount(rng: Random) -> float:
    """Money in hundredths, spread evenly over the number of digits before the point."""
    return rng.randrange(10, 10 ** rng.choice((3, 3, 4, 4, 5))) / 100


def date(rng: Random, style: int) -> str:
    """A date in one of four notations, given by ``style`` 0 to 3."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1998, 2039)
    forms = (
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}/{month:02d}/{year}",
        f"{day} {MONTHS[month - 1]} {year}",
        f"{day:02d}.{month:02d}.{year % 100:02d}",
    )
    return forms[style]


def clock(rng: Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"


def phone(rng: Random) -> str:
    first, second = digits(rng, 3), digits(rng, 4)
    return rng.choice(
        (f"{first}-{second}", f"0{digits(rng, 2)} {first} {second}", f"+{digits(rng, 2)} {first} {second}")
    )


def address(rng: Random) -> str:
    return f"{rng.randint(1, 299)} {_real_or_pseudo(rng, LAST_NAMES)} {rng.choice(STREETS)}"


def gibberish(rng: Random) -> str:
    """Two to seven printable characters with no meaning at all."""
    return "".join(rng.choice(_ASCII) for _ in range(rng.randint(2, 7)))


def token(rng: Random) -> str:
    """Any short printed thing without a space: a real word, a pseudo-word, a number, a code or gibberish."""
    draw = rng.random()
    if draw < 0.36:
        return vary_case(rng, rng.choice(WORDS)) + (rng.choice(",.;:!?") if rng.random() < 0.12 else "")
    if draw < 0.62:
        return vary_case(rng, pseudo_word(rng))
    if draw < 0.74:
        return code(rng)
    if draw < 0.82:
        return rng.choice(("", "", "$")) + f"{amount(rng):.2f}"
    if draw < 0.9:
        return gibberish(rng)
    return rng.choice((clock, lambda r: digits(r, r.randint(1, 5)), lambda r: date(r, r.choice((0, 1, 3)))))(rng)


def value(rng: Random) -> str:
    """A token without the punctuation that follows a word."""
    return token(rng).strip(",.;:!?") or digits(rng, 3)
